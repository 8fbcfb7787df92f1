//! Coupled congestion control (RFC 8684 §3.3.7): what the subflows of LIA (RFC 6356) take together,
//! beside Reno's TCP. The goals are those of RFC 6356 §2; for goal 2, what the same downloads take with
//! Reno on every subflow shows that a test would notice.
//!
//! The bands: over seeds the logarithm of such a ratio has a standard deviation of 0.06 to 0.13 (of two
//! TCPs 0.06), so that they are some three of them to either side.

use crate::model::apps::Behaviour;
use crate::model::client::{AckPolicy, Client, ClientConfig};
use crate::model::net::Path;
use crate::model::server::ServiceSetup;
use crate::model::sim::{Family, Sim, SimConfig};
use mpx_datapath::engine::{Patience, Versions};
use mpx_datapath::tcp::congestion::Algorithm::{self, Lia, Reno};
use mpx_datapath::time::Duration;

/// Small segments, so that a window has many and a second few octets.
const MSS: u16 = 536;
/// Before that nothing counts.
const WARM_UP: Duration = Duration::from_secs(3);

/// A path for 880 segments per second. Queue and path take 44 of them in: two TCPs lose some every
/// half a second.
fn narrow() -> Path {
    Path {
        delay: Duration::from_millis(10),
        rate: 880 * u64::from(MSS),
        queue: Duration::from_millis(30),
        // Otherwise a full queue meets the same flow every time.
        jitter: Duration::from_millis(1),
        ..Path::default()
    }
}

/// A wide path that loses one frame in a hundred, whoever sends what.
fn lossy(delay_ms: u64) -> Path {
    Path {
        delay: Duration::from_millis(delay_ms),
        rate: 0,
        loss_permille: 10,
        ..Path::default()
    }
}

/// An endless download, with a subflow on each of these paths.
type Download<'a> = (Algorithm, &'a [usize]);

/// Octets per second of each subflow of each download, when all have gone on for `time`.
fn rates(paths: &[Path], downloads: &[Download<'_>], time: Duration) -> Vec<Vec<f64>> {
    let port = |n: usize| 8000 + n as u16;
    let services = downloads.iter().enumerate();
    let services = services.map(|(n, &(congestion, _))| ServiceSetup {
        port: port(n),
        versions: Versions::default(),
        checksum: false,
        patience: Patience::default(),
        congestion,
        ecn: false,
    });
    let mut sim = Sim::new(SimConfig {
        paths: paths.to_vec(),
        more_services: services.collect(),
        ..SimConfig::with(Behaviour {
            send_bytes: usize::MAX,
            ..Behaviour::default()
        })
    });
    for (n, (_, over)) in downloads.iter().enumerate() {
        let config = ClientConfig {
            multipath: over.len() > 1,
            mss: MSS,
            ack: AckPolicy {
                every: 2,
                delay: Duration::from_millis(40),
            },
            seed: n as u64,
            ..ClientConfig::new(Family::V4.server_at(over[0], port(n)))
        };
        let c = sim.connect_over(config, over[0]);
        sim.run(|sim| sim.clients[c].established());
        for &path in &over[1..] {
            sim.join(c, path);
        }
    }
    let arrived = |sim: &Sim| -> Vec<Vec<u64>> {
        let of = |c: &Client| c.subflows.iter().map(|s| s.rcv_nxt).collect();
        sim.clients.iter().map(of).collect()
    };
    sim.run_for(WARM_UP);
    let before = arrived(&sim);
    sim.run_for(time);
    let alive = |c: &Client| c.subflows.iter().all(|s| s.open());
    assert!(sim.clients.iter().all(alive), "{}", sim.describe());
    let rate = |(after, before): (&u64, &u64)| (after - before) as f64 / time.as_secs_f64();
    let pairs = std::iter::zip(arrived(&sim), before);
    pairs
        .map(|(after, before)| std::iter::zip(&after, &before).map(rate).collect())
        .collect()
}

fn total(download: &[f64]) -> f64 {
    download.iter().sum()
}

/// What a download over so many subflows takes of a bottleneck, in parts of what one TCP takes.
fn ratio_at_a_shared_bottleneck(congestion: Algorithm, subflows: usize) -> f64 {
    let downloads: [Download<'_>; 2] = [(congestion, &vec![0; subflows]), (Reno, &[0])];
    let rates = rates(&[narrow()], &downloads, Duration::from_secs(20));
    total(&rates[0]) / total(&rates[1])
}

// RFC 8684 §3.3.7, RFC 6356 goal 2.
#[test]
fn two_subflows_take_as_much_of_a_shared_bottleneck_as_one_tcp() {
    let ratio = ratio_at_a_shared_bottleneck(Lia, 2);
    assert!((0.65..1.5).contains(&ratio), "{ratio}");
    let uncoupled = ratio_at_a_shared_bottleneck(Reno, 2);
    assert!((1.6..2.5).contains(&uncoupled), "{uncoupled}");
}

#[test]
fn so_do_four() {
    let ratio = ratio_at_a_shared_bottleneck(Lia, 4);
    assert!((0.65..1.5).contains(&ratio), "{ratio}");
}

// RFC 6356 goals 1 and 2, with a TCP on either path, of which one has half as much room.
#[test]
fn over_two_bottlenecks_they_take_as_much_as_a_tcp_on_the_better_one_and_no_more_on_either() {
    let (wide, half) = (narrow(), narrow().rate / 2);
    let paths = [
        wide,
        Path {
            rate: half,
            ..narrow()
        },
    ];
    // Two TCPs would share the better path; a tenth of it is headers.
    let fair = wide.rate as f64 * 0.9 / 2.0;
    let rates = |congestion| {
        let downloads: [Download<'_>; 3] = [(congestion, &[0, 1]), (Reno, &[0]), (Reno, &[1])];
        rates(&paths, &downloads, Duration::from_secs(20))
    };
    let coupled = rates(Lia);
    let (both, one, other) = (&coupled[0], coupled[1][0], coupled[2][0]);
    let ratio = total(both) / fair;
    assert!((0.8..1.25).contains(&ratio), "{both:?} of {fair}");
    assert!(
        both[0] < 1.1 * one && both[1] < 1.1 * other,
        "{both:?}: {one}, {other}"
    );
    // A TCP's part of the other path is half as much.
    let uncoupled = total(&rates(Reno)[0]) / fair;
    assert!((1.3..1.7).contains(&uncoupled), "{uncoupled}");
}

// RFC 6356 goal 1 alone: where losses do not depend on who sends what, nobody takes anything from others,
// and Reno would stay in the band, too. §3, equation 2: alpha makes the sum that of a TCP on the best path, whatever the round trips;
// growth by windows alone would bring 0.58 of it here. It is derived for losses that do not depend
// on the load. As it is computed from the windows of the moment, not from their means, some 0.1 is lost.
#[test]
fn over_paths_of_unequal_round_trips_they_take_as_much_as_a_tcp_on_the_faster_one() {
    let paths = [lossy(10), lossy(60)];
    let downloads: [Download<'_>; 3] = [(Lia, &[0, 1]), (Reno, &[0]), (Reno, &[1])];
    let rates = rates(&paths, &downloads, Duration::from_secs(20));
    let (both, faster, slower) = (&rates[0], rates[1][0], rates[2][0]);
    assert!(faster > 4.0 * slower, "{rates:?}");
    let ratio = total(both) / faster;
    assert!((0.68..1.2).contains(&ratio), "{both:?}: {faster}");
}
