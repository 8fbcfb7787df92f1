//! What the XDP program takes for one frame, and what reading the tokens of joins has to do with it:
//! `BPF_PROG_TEST_RUN` of two objects in turn, one of which does not read them.

use std::fmt::Write as _;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::Path;
use std::time::Duration;

use aya::maps::{Array, HashMap, HashOfMaps, Map, MapData, PerCpuArray, XskMap};
use aya::programs::{TestRun, TestRunOptions, Xdp};
use aya::{Ebpf, EbpfLoader};
use aya_obj::generated::bpf_map_type::BPF_MAP_TYPE_XSKMAP;
use mpx_ebpf::{
    Config, ConfigWords, ENTRY_ADDRESS, ENTRY_JOINS, ENTRY_SERVICE, FLAG_DIRECT, MAP_CONFIG,
    MAP_COUNTERS, MAP_SERVICES, MAP_XSKS, OWNER_BITS_DEFAULT, PROGRAM, SLOTS_MAX, ServiceKey,
    Verdict, address_key, address_octets, service_key_of,
};
use rustix::net::{AddressFamily, SocketType};

type Error = Box<dyn std::error::Error>;

const CLIENT: [u8; 4] = [10, 9, 1, 1];
const SERVER: [u8; 4] = [10, 9, 1, 2];
const SERVICE_PORT: u16 = 80;
const CLOSED_PORT: u16 = 4444;
const WORKERS: u32 = 2;

const FIN: u8 = 0x01;
const SYN: u8 = 0x02;
const ACK: u8 = 0x10;

/// Options as Linux sends them; TSecr ends in the number of worker 1.
const TIMESTAMPS: &[u8] = &[8, 10, 0, 0, 0, 7, 0x12, 0x34, 0x56, 1];
const DSS: &[u8] = &[30, 8, 0x20, 1, 0, 0, 0, 9];
const SYN_OPTIONS: &[u8] = &[
    2, 4, 5, 0xb4, 4, 2, 8, 10, 0, 0, 0, 7, 0, 0, 0, 0, 1, 3, 3, 7,
];
const MP_CAPABLE: &[u8] = &[30, 4, 0x01, 0x01];
const MP_JOIN: &[u8] = &[30, 12, 0x10, 2, 0xde, 0xad, 0xbe, 0xef, 1, 2, 3, 4];

/// A frame, and what the program that reads joins makes of it.
struct Case {
    name: &'static str,
    frame: Vec<u8>,
    verdict: Verdict,
}

fn cases() -> Vec<Case> {
    use Verdict::{PassNotOurs, PassNotTcp, RedirectHome, RedirectTimestamp, RedirectToken};
    let tcp = |name, flags, port, options: &[&[u8]], verdict| Case {
        name,
        frame: tcp_frame(flags, port, &options.concat()),
        verdict,
    };
    let to_service =
        |name, flags, options: &[&[u8]], verdict| tcp(name, flags, SERVICE_PORT, options, verdict);
    let nops: &[u8] = &[1, 1];
    let mut udp = tcp_frame(0, SERVICE_PORT, &[]);
    udp[23] = 17;
    vec![
        to_service(
            "established",
            ACK,
            &[nops, TIMESTAMPS, DSS],
            RedirectTimestamp,
        ),
        to_service(
            "established, timestamps not first",
            ACK,
            &[DSS, nops, TIMESTAMPS],
            RedirectTimestamp,
        ),
        to_service("established, no timestamps", ACK, &[DSS], RedirectHome),
        to_service(
            "FIN",
            ACK | FIN,
            &[nops, TIMESTAMPS, DSS],
            RedirectTimestamp,
        ),
        to_service("SYN", SYN, &[SYN_OPTIONS], RedirectHome),
        to_service(
            "SYN with MP_CAPABLE",
            SYN,
            &[SYN_OPTIONS, MP_CAPABLE],
            RedirectHome,
        ),
        to_service(
            "SYN with MP_JOIN",
            SYN,
            &[SYN_OPTIONS, MP_JOIN],
            RedirectToken,
        ),
        to_service(
            "the same behind 28 NOPs",
            SYN,
            &[&[1; 28], MP_JOIN],
            RedirectToken,
        ),
        tcp(
            "SYN to a closed port",
            SYN,
            CLOSED_PORT,
            &[SYN_OPTIONS],
            PassNotOurs,
        ),
        tcp(
            "ACK to a closed port",
            ACK,
            CLOSED_PORT,
            &[nops, TIMESTAMPS],
            PassNotOurs,
        ),
        Case {
            name: "UDP",
            frame: udp,
            verdict: PassNotTcp,
        },
    ]
}

/// No checksums: the program looks at none.
fn tcp_frame(flags: u8, port: u16, options: &[u8]) -> Vec<u8> {
    let mut frame = vec![2; 12];
    frame.extend([8, 0, 0x45, 0, 0, 64, 0, 0, 0x40, 0, 64, 6, 0, 0]);
    frame.extend(CLIENT);
    frame.extend(SERVER);
    frame.extend(40_000u16.to_be_bytes());
    frame.extend(port.to_be_bytes());
    frame.extend([0; 8]);
    let words = (20 + options.len()).div_ceil(4) as u8;
    frame.extend([words << 4, flags, 0xff, 0xff, 0, 0, 0, 0]);
    frame.extend(options);
    frame.resize((34 + usize::from(words) * 4).max(60), 0);
    frame
}

/// Loads both objects and prints the table.
///
/// # Errors
/// One line: the kernel refuses an object, or a frame does not go the way that is meant.
pub(crate) fn run(
    whole: &Path,
    without_joins: &Path,
    repeat: u32,
    rounds: usize,
) -> Result<(), String> {
    measure(whole, without_joins, repeat, rounds).map_err(|error| error.to_string())
}

fn measure(whole: &Path, without_joins: &Path, repeat: u32, rounds: usize) -> Result<(), Error> {
    // The kernel counts time for the thread, so moves between cores would show.
    let core = core_affinity::get_core_ids().and_then(|cores| cores.last().copied());
    core.map(core_affinity::set_for_current);
    let programs = [Loaded::new(without_joins)?, Loaded::new(whole)?];
    let cases = cases();
    for case in &cases {
        programs[1].expect_verdict(case)?;
    }
    let mut samples = vec![[vec![], vec![]]; cases.len()];
    for _ in 0..rounds.max(1) {
        // In turn, so that what else the machine does meets both alike.
        for (case, samples) in cases.iter().zip(&mut samples) {
            for (program, samples) in programs.iter().zip(samples) {
                samples.push(program.time(case, repeat)?);
            }
        }
    }
    let mut table = String::from("| frame | without | with | difference |\n|---|---|---|---|\n");
    for (case, samples) in cases.iter().zip(&mut samples) {
        let [without, with] = samples.each_mut().map(|samples| {
            samples.sort_unstable();
            (samples[0], samples[samples.len() / 2])
        });
        let difference = |with: Duration, without: Duration| {
            with.as_nanos() as i128 - without.as_nanos() as i128
        };
        writeln!(
            table,
            "| {} | {} ({}) | {} ({}) | {} ({}) |",
            case.name,
            without.0.as_nanos(),
            without.1.as_nanos(),
            with.0.as_nanos(),
            with.1.as_nanos(),
            difference(with.0, without.0),
            difference(with.1, without.1),
        )?;
    }
    println!("ns per frame, least (median) of {rounds} rounds of {repeat} runs\n\n{table}");
    Ok(())
}

/// A program with its maps filled, attached to nothing.
struct Loaded {
    ebpf: Ebpf,
    // What its maps refer to.
    _sockets: Vec<OwnedFd>,
}

impl Loaded {
    fn new(object: &Path) -> Result<Loaded, Error> {
        let mut ebpf = EbpfLoader::new().btf(None).load_file(object)?;
        let config = Config {
            workers: WORKERS,
            owner_bits: OWNER_BITS_DEFAULT,
            owners: WORKERS,
            first_owner: 0,
            flags: FLAG_DIRECT,
            hash_key: [0x0123_4567_89ab_cdef, 0xfedc_ba98_7654_3210],
            syns_per_window: u32::MAX,
            strays_per_window: u32::MAX,
        };
        let mut array = Array::<_, ConfigWords>::try_from(map(&mut ebpf, MAP_CONFIG)?)?;
        array.set(0, config.to_words(), 0)?;
        let mut services = HashMap::<_, ServiceKey, u32>::try_from(map(&mut ebpf, MAP_SERVICES)?)?;
        let service = (SERVER, SERVICE_PORT).into();
        services.insert(service_key_of(service), ENTRY_SERVICE, 0)?;
        let address = address_key(address_octets(service.ip()));
        services.insert(address, ENTRY_ADDRESS | ENTRY_JOINS, 0)?;
        // A test run is queue 0 of the loopback interface, and there is a socket for every worker.
        const LOOPBACK: u32 = 1;
        let word = size_of::<u32>() as u32;
        let definition =
            aya_obj::Map::new_from_params(BPF_MAP_TYPE_XSKMAP as u32, word, word, SLOTS_MAX, 0);
        let data = MapData::create(definition, "mpx_sockets", None)?;
        let mut slots: XskMap<MapData> = XskMap::try_from(Map::XskMap(data))?;
        let mut sockets = Vec::new();
        for worker in 0..WORKERS {
            let family = AddressFamily::from_raw(libc::AF_XDP as u16);
            let socket = rustix::net::socket(family, SocketType::RAW, None)?;
            slots.set(worker, socket.as_raw_fd(), 0)?;
            sockets.push(socket);
        }
        let mut all = HashOfMaps::<_, u32, XskMap<MapData>>::try_from(map(&mut ebpf, MAP_XSKS)?)?;
        all.insert(LOOPBACK, &slots, 0)?;
        let program: &mut Xdp = ebpf
            .program_mut(PROGRAM)
            .ok_or("the object has no program of that name")?
            .try_into()?;
        program.load()?;
        Ok(Loaded {
            ebpf,
            _sockets: sockets,
        })
    }

    /// What one of `repeat` runs takes.
    fn time(&self, case: &Case, repeat: u32) -> Result<Duration, Error> {
        let program = self.ebpf.program(PROGRAM).ok_or("the program is gone")?;
        let program: &Xdp = program.try_into()?;
        let options = TestRunOptions {
            data_in: Some(&case.frame),
            repeat,
            ..TestRunOptions::new()
        };
        Ok(program.test_run(options)?.duration)
    }

    /// Measuring makes sense only where the frame goes the way that is meant.
    fn expect_verdict(&self, case: &Case) -> Result<(), Error> {
        let counters = self.ebpf.map(MAP_COUNTERS).ok_or("the counters are gone")?;
        let counters = PerCpuArray::<_, u64>::try_from(counters)?;
        let count = |verdict: Verdict| -> Result<u64, Error> {
            Ok(counters.get(&(verdict as u32), 0)?.iter().sum())
        };
        let before = count(case.verdict)?;
        self.time(case, 1)?;
        match count(case.verdict)? == before + 1 {
            true => Ok(()),
            false => Err(format!("{}: not {}", case.name, case.verdict.name()).into()),
        }
    }
}

fn map<'a>(ebpf: &'a mut Ebpf, name: &str) -> Result<&'a mut Map, Error> {
    Ok(ebpf
        .map_mut(name)
        .ok_or_else(|| format!("the object has no map {name}"))?)
}
