//! What loss and the client's buffer leave of a path to each congestion control: a table of downloads in virtual time.
//!
//! It judges nothing. It is kept as a file, so that a change of the sender shows what it does to
//! throughput: `UPDATE_EXPECT=1` in the environment writes the file anew.

use crate::model::apps::Behaviour;
use crate::model::client::{AckPolicy, ClientConfig};
use crate::model::net::Path;
use crate::model::sim::{Family, Sim, SimConfig};
use expect_test::expect_file;
use mpx_datapath::tcp::congestion::Algorithm;
use mpx_datapath::time::Duration;
use std::fmt::Write;

/// 100 Mbit/s.
const RATE: u64 = 12_500_000;
const ONE_WAY: Duration = Duration::from_millis(10);
/// Of the bottleneck: as much as a round trip takes in.
const QUEUE: Duration = Duration::from_millis(20);

const LOSS_PERMILLE: [u32; 5] = [0, 1, 10, 30, 100];
const BUFFERS_KIB: [usize; 8] = [8, 16, 32, 64, 128, 256, 512, 1024];

/// A download ends when so much has come or so much time has passed.
const DOWNLOAD_BYTES: usize = 3 << 20;
const DOWNLOAD_TIME: Duration = Duration::from_secs(10);
/// Downloads of one cell: one says more of the dice than of the sender.
const DOWNLOADS: u64 = 3;

/// Holds the table against the file.
pub fn check() {
    expect_file!["../snapshots/throughput.txt"].assert_eq(&table());
}

fn table() -> String {
    let mut table = String::from("Mbit/s of a download over a path of 100 Mbit/s and 20 ms\n");
    for congestion in Algorithm::ALL {
        _ = write!(
            table,
            "\n{:<6}| KiB of the client's receive buffer\n",
            congestion.name()
        );
        table.push_str("loss  |");
        for buffer in BUFFERS_KIB {
            _ = write!(table, "{buffer:>7}");
        }
        table.push('\n');
        for loss in LOSS_PERMILLE {
            _ = write!(table, "{:>4.1} %|", f64::from(loss) / 10.0);
            for buffer in BUFFERS_KIB {
                let rate = megabits_per_second(congestion, loss, buffer << 10);
                _ = write!(table, "{rate:>7.1}");
            }
            table.push('\n');
        }
    }
    table
}

fn megabits_per_second(
    congestion: Algorithm,
    loss_permille: u32,
    receive_buffer_bytes: usize,
) -> f64 {
    let (mut bits, mut seconds) = (0.0, 0.0);
    // Without loss there are no dice.
    let downloads = if loss_permille == 0 { 1 } else { DOWNLOADS };
    for seed in 0..downloads {
        let (octets, took) = download(seed, congestion, loss_permille, receive_buffer_bytes);
        bits += octets as f64 * 8.0;
        seconds += took.as_secs_f64();
    }
    bits / seconds / 1e6
}

/// Octets that came, and how long that took from the SYN on.
fn download(
    seed: u64,
    congestion: Algorithm,
    loss_permille: u32,
    receive_buffer_bytes: usize,
) -> (usize, Duration) {
    let path = Path {
        delay: ONE_WAY,
        rate: RATE,
        queue: QUEUE,
        loss_permille,
        ..Path::default()
    };
    let mut sim = Sim::new(SimConfig {
        paths: vec![path],
        seed,
        congestion,
        send_buffer_bytes: 4 << 20,
        ..SimConfig::with(Behaviour {
            send_bytes: DOWNLOAD_BYTES,
            ..Behaviour::default()
        })
    });
    let began = sim.now;
    let c = sim.connect(ClientConfig {
        receive_buffer_bytes,
        ack: AckPolicy {
            every: 2,
            delay: Duration::from_millis(40),
        },
        ..ClientConfig::plain(Family::V4.server(0))
    });
    sim.run(|sim| {
        sim.clients[c].received().len() == DOWNLOAD_BYTES || sim.now.since(began) >= DOWNLOAD_TIME
    });
    (sim.clients[c].received().len(), sim.now.since(began))
}
