//! How often connections fell back to plain TCP, by the port they came to and by cause.

use super::report::FallbackReport;
use crate::mptcp::fallback::Fallback;
use std::collections::BTreeMap;

/// Ports are those that services listen on, so there are no more entries than those.
#[derive(Debug, Default)]
pub(super) struct Fallbacks(BTreeMap<u16, [u64; Fallback::ALL.len()]>);

impl Fallbacks {
    pub(super) fn count(&mut self, port: u16, cause: Fallback) {
        let counts = self.0.entry(port).or_default();
        counts[cause as usize] += 1;
    }

    /// Those that happened, by port.
    pub(super) fn report(&self) -> Vec<FallbackReport> {
        let of_port = |(port, counts): (&u16, &[u64; Fallback::ALL.len()])| {
            let port = *port;
            let counted = Fallback::ALL.into_iter().zip(*counts);
            let happened = counted.filter(|(_, count)| *count > 0);
            happened.map(move |(cause, count)| FallbackReport {
                port,
                cause: cause.name(),
                direction: cause.direction(),
                count,
            })
        };
        self.0.iter().flat_map(of_port).collect::<Vec<_>>()
    }
}
