//! `mpx-bench keys`: the engine's key pool by itself. Many keys at once are all different to those who
//! join, every owner gets its share, and a table says what a key costs with and without the pool.

use std::collections::HashSet;
use std::fs::File;
use std::io::Read;
use std::process::ExitCode;
use std::time::Duration;

use clap::Args;
use mpx_datapath::crypto::token_and_idsn;
use mpx_datapath::engine::KeyPool;
use mpx_datapath::rand::{ChaChaEntropy, Entropy};

/// Keys that a pool holds here: what a worker has by default.
const POOLED: usize = 1024;
const WORKERS: [u32; 4] = [1, 4, 16, 64];
/// Keys timed for each number of workers, from the pool and without.
const TIMED_POOLED: u32 = 200 * POOLED as u32;
const TIMED_DRAWN: u32 = 20_000;
/// A share that is off by more standard deviations than this happens once in a million runs.
const DEVIATIONS_MAX: f64 = 6.0;

#[derive(Debug, Args)]
pub(crate) struct KeysArgs {
    /// Keys that are in use at once
    #[arg(long, default_value_t = 10_000_000, value_name = "N", value_parser = clap::value_parser!(u32).range(1_000..=100_000_000))]
    keys: u32,
}

pub(crate) fn run(args: &KeysArgs) -> Result<ExitCode, String> {
    let mut seed = [0; 32];
    File::open("/dev/urandom")
        .and_then(|mut file| file.read_exact(&mut seed))
        .map_err(|error| format!("cannot read /dev/urandom: {error}"))?;
    let mut entropy = ChaChaEntropy::from_seed(seed);
    let even = draw_many(args.keys, &mut entropy)?;
    println!();
    println!("| workers | pooled key, ns | unpooled key, ns |");
    println!("|---|---|---|");
    for workers in WORKERS {
        let (pooled, drawn) = time(workers, &mut entropy)?;
        println!("| {workers} | {pooled:.1} | {drawn:.0} |");
    }
    Ok(if even {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

/// So many keys with tokens of their own; returns whether owners got like shares of them.
fn draw_many(keys: u32, entropy: &mut dyn Entropy) -> Result<bool, String> {
    let mut pool = KeyPool::new(0, 1, POOLED, token_and_idsn);
    let mut tokens = HashSet::with_capacity(keys as usize);
    let mut taken_already = 0u64;
    let mut shares = WORKERS.map(|workers| vec![0u64; workers as usize]);
    for _ in 0..keys {
        pool.refill(entropy, 1);
        let is_free = |token| {
            let free = !tokens.contains(&token);
            taken_already += u64::from(!free);
            free
        };
        let key = pool.take(entropy, is_free).ok_or("no key is left")?;
        if token_and_idsn(key.key) != (key.token, key.idsn) || !tokens.insert(key.token) {
            return Err(format!("token {:08x} was given twice", key.token));
        }
        for (workers, share) in WORKERS.iter().zip(&mut shares) {
            share[mpx_ebpf::owner_of(key.token, *workers) as usize] += 1;
        }
    }
    // The birthday paradox: every pair agrees once in 2^32.
    let expected = f64::from(keys) * f64::from(keys) / 2f64.powi(33);
    println!("{keys} keys in use, {} tokens", tokens.len());
    println!("drawn again because the token was taken: {taken_already}, {expected:.0} expected");
    let mut even = true;
    for (workers, share) in WORKERS.iter().zip(&shares) {
        let p = 1.0 / f64::from(*workers);
        let mean = f64::from(keys) * p;
        let deviation = (mean * (1.0 - p)).sqrt().max(1.0);
        let off = share.iter().map(|&n| (n as f64 - mean).abs() / deviation);
        let worst = off.fold(0.0, f64::max);
        even &= worst <= DEVIATIONS_MAX;
        let (least, most) = (share.iter().min(), share.iter().max());
        println!(
            "{workers} owners: {} to {} keys each, {worst:.1} standard deviations off at most",
            least.unwrap_or(&0),
            most.unwrap_or(&0)
        );
    }
    Ok(even)
}

/// Nanoseconds of this thread that one key of `workers` takes: from a full pool, and drawn at once.
fn time(workers: u32, entropy: &mut dyn Entropy) -> Result<(f64, f64), String> {
    let owner = workers / 2;
    let mut pool = KeyPool::new(owner, workers, POOLED, token_and_idsn);
    let mut pooled = Duration::ZERO;
    let mut seen = 0;
    for _ in 0..TIMED_POOLED / POOLED as u32 {
        while pool.refill(entropy, 1024) {}
        let began = thread_time();
        for _ in 0..POOLED {
            seen ^= pool
                .take(entropy, |_| true)
                .ok_or("the pool is empty")?
                .token;
        }
        pooled += thread_time() - began;
    }
    let mut none = KeyPool::new(owner, workers, 0, token_and_idsn);
    let began = thread_time();
    for _ in 0..TIMED_DRAWN {
        seen ^= none.take(entropy, |_| true).ok_or("no key is found")?.token;
    }
    let drawn = thread_time() - began;
    std::hint::black_box(seen);
    let each = |time: Duration, keys: u32| time.as_secs_f64() * 1e9 / f64::from(keys);
    Ok((each(pooled, TIMED_POOLED), each(drawn, TIMED_DRAWN)))
}

/// What else the machine does is not counted.
fn thread_time() -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}
