//! How many workers there are, where they run, and how frames find them.

use super::{ConfigError, RawConfig, Source};
use mpx_ebpf::OWNER_BITS_DEFAULT;

/// Workers of one server, and cores of a machine.
const WORKERS_MAX: u64 = 1 << OWNER_BITS_DEFAULT;
const CORES_MAX: u64 = 4096;

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Workers {
    /// `None`: one for each queue, but no more than there are cores for them.
    pub(crate) count: Option<u32>,
    /// `None`: of those next to the interfaces.
    pub(crate) cores: Option<Vec<usize>>,
    pub(crate) steering: Steering,
    pub(crate) flow_hash: FlowHash,
    pub(crate) generic: Generic,
}

/// Who brings a frame to its worker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Steering {
    /// The XDP program.
    Direct,
    /// The worker that it comes to.
    Mesh,
}

/// What the worker of an initial subflow goes by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum FlowHash {
    /// A keyed hash of the 4-tuple.
    Xdp,
    /// The queue that the NIC chose.
    Nic,
}

/// Whether the XDP program may run in the kernel's generic mode, behind the driver.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Generic {
    Never,
    /// Where the driver cannot run it.
    Allow,
    /// Even where it can.
    Always,
}

impl Source<'_> {
    pub(super) fn workers(&self, raw: &RawConfig) -> Result<Workers, ConfigError> {
        let count = raw.workers.as_ref();
        let count = count
            .map(|value| self.number("workers", Some(value), 1, 1..=WORKERS_MAX))
            .transpose()?;
        if let (Some(value), Some(count), Some(server)) = (&raw.workers, count, &raw.server)
            && count * server.of.get_ref() > WORKERS_MAX
        {
            return Err(self.error(
                value,
                "workers",
                format!(
                    "{count} workers on each of {} servers are more than the {WORKERS_MAX} that \
                     timestamps tell apart; choose fewer",
                    server.of.get_ref()
                ),
            ));
        }
        let cores = raw.cores.as_ref();
        let cores = cores.map(|list| {
            if list.get_ref().is_empty() {
                return Err(self.error(list, "cores", "is empty; write cores = [2, 3]"));
            }
            let core = |value| self.number("cores", Some(value), 0, 0..=CORES_MAX - 1);
            let cores = list.get_ref().iter().map(|value| Ok(core(value)? as usize));
            let cores: Vec<usize> = cores.collect::<Result<_, _>>()?;
            if count.is_some_and(|count| count != cores.len() as u64) {
                return Err(self.error(
                    list,
                    "cores",
                    format!(
                        "names {} for {} workers; name one for each, or leave workers out",
                        cores.len(),
                        count.unwrap_or_default()
                    ),
                ));
            }
            Ok(cores)
        });
        Ok(Workers {
            count: count.map(|count| count as u32),
            cores: cores.transpose()?,
            steering: self.choice(
                "steering",
                raw.steering.as_ref(),
                &[("direct", Steering::Direct), ("mesh", Steering::Mesh)],
            )?,
            flow_hash: self.choice(
                "flow_hash",
                raw.flow_hash.as_ref(),
                &[("xdp", FlowHash::Xdp), ("nic", FlowHash::Nic)],
            )?,
            generic: self.choice(
                "generic",
                raw.generic.as_ref(),
                &[
                    ("never", Generic::Never),
                    ("allow", Generic::Allow),
                    ("always", Generic::Always),
                ],
            )?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;
    use std::path::Path;

    fn parse(head: &str) -> Result<Workers, String> {
        let text = format!(
            "{head}\n[[interface]]\nname = \"s1\"\n[[service]]\nname = \"web\"\n\
             listen = [\"192.0.2.1:80\"]\napp = {{ kind = \"echo\" }}\n"
        );
        let config = Config::parse(Path::new("m.toml"), &text);
        config.map(|c| c.workers).map_err(|error| error.to_string())
    }

    #[test]
    fn defaults_leave_it_to_the_machine() {
        let workers = parse("").unwrap();
        let default = Workers {
            count: None,
            cores: None,
            steering: Steering::Direct,
            flow_hash: FlowHash::Xdp,
            generic: Generic::Never,
        };
        assert_eq!(workers, default);
    }

    #[test]
    fn what_is_said_is_taken_and_what_cannot_be_is_refused_by_line() {
        let all = "workers = 2\ncores = [3, 5]\nsteering = \"mesh\"\nflow_hash = \"nic\"\n\
                   generic = \"allow\"";
        let workers = parse(all).unwrap();
        assert_eq!((workers.count, workers.cores), (Some(2), Some(vec![3, 5])));
        assert_eq!(workers.steering, Steering::Mesh);
        assert_eq!(workers.flow_hash, FlowHash::Nic);
        assert_eq!(workers.generic, Generic::Allow);
        for (text, error) in [
            (
                "workers = 0",
                "m.toml:1: workers: 0 is out of range; choose from 1 to 256",
            ),
            (
                "workers = 100\nserver = { id = 0, of = 3 }",
                "m.toml:1: workers: 100 workers on each of 3 servers are more than the 256 that \
                 timestamps tell apart; choose fewer",
            ),
            (
                "cores = []",
                "m.toml:1: cores: is empty; write cores = [2, 3]",
            ),
            (
                "workers = 3\ncores = [1]",
                "m.toml:2: cores: names 1 for 3 workers; name one for each, or leave workers out",
            ),
            (
                "steering = \"rss\"",
                "m.toml:1: steering: \"rss\" is unknown; use \"direct\" or \"mesh\"",
            ),
        ] {
            assert_eq!(parse(text).unwrap_err(), error);
        }
    }
}
