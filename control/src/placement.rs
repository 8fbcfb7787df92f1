//! How many workers there are, and on which core each runs.

use crate::config::{Config, Workers};
use crate::nic::Nic;
use core_affinity::CoreId;
use mpx_ebpf::OWNER_BITS_DEFAULT;
use std::path::Path;

/// One for each worker; `None`: wherever the kernel lets it run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Placement {
    pub(crate) cores: Vec<Option<usize>>,
    /// For the log.
    pub(crate) remark: Option<String>,
}

impl Placement {
    /// # Errors
    /// One line for the user.
    pub(crate) fn new(config: &Config, nics: &[Nic]) -> Result<Placement, String> {
        let allowed: Vec<usize> = core_affinity::get_core_ids()
            .unwrap_or_default()
            .into_iter()
            .map(|core| core.id)
            .collect();
        let near = near(nics).filter(|near| near.iter().any(|core| allowed.contains(core)));
        let queues = nics.iter().map(|nic| nic.queues).max().unwrap_or(1);
        let placement = place(&config.workers, &allowed, near.as_deref(), queues)?;
        let owners = placement.workers() * config.server.of;
        if owners > 1 << OWNER_BITS_DEFAULT {
            return Err(format!(
                "{} workers on each of {} servers are more than the {} that timestamps tell apart; \
                 set workers",
                placement.workers(),
                config.server.of,
                1 << OWNER_BITS_DEFAULT
            ));
        }
        Ok(placement)
    }

    pub(crate) fn workers(&self) -> u32 {
        self.cores.len() as u32
    }

    /// In one line.
    pub(crate) fn summary(&self) -> String {
        let name = |core: &Option<usize>| core.map_or("any".to_owned(), |core| core.to_string());
        let cores: Vec<_> = self.cores.iter().map(name).collect();
        let plural = if self.cores.len() == 1 { "" } else { "s" };
        format!(
            "{} worker{plural} on core{plural} {}",
            self.cores.len(),
            cores.join(" ")
        )
    }
}

/// Binds the calling thread to `core`; returns whether that worked.
pub(crate) fn pin(core: usize) -> bool {
    core_affinity::set_for_current(CoreId { id: core })
}

/// `near`: the cores next to all the interfaces, where that is known.
fn place(
    wanted: &Workers,
    allowed: &[usize],
    near: Option<&[usize]>,
    queues: u32,
) -> Result<Placement, String> {
    if let Some(cores) = &wanted.cores {
        if let Some(core) = cores.iter().find(|core| !allowed.contains(core)) {
            let allowed: Vec<_> = allowed.iter().map(usize::to_string).collect();
            return Err(format!(
                "cores: this process may not run on core {core}; choose from {}",
                allowed.join(" ")
            ));
        }
        return Ok(Placement {
            cores: cores.iter().copied().map(Some).collect(),
            remark: None,
        });
    }
    let is_near = |core: &&usize| near.is_none_or(|near| near.contains(core));
    // The last first: interrupts and the rest of the system favour the first.
    let cores: Vec<usize> = allowed.iter().filter(is_near).rev().copied().collect();
    let most = cores.len().max(1) as u32;
    let workers = wanted.count.unwrap_or(queues.min(most));
    let remark = if workers > most {
        Some(format!(
            "{workers} workers poll on {most} core(s), where they keep each other waiting; set \
             workers = {most} or allow more cores"
        ))
    } else if workers < queues && wanted.count.is_none() {
        Some(format!(
            "{workers} worker(s) for {queues} queues: there are no more cores for them next to the \
             interfaces"
        ))
    } else {
        None
    };
    let mut turns: Vec<Option<usize>> = cores.iter().copied().map(Some).collect();
    if turns.is_empty() {
        turns.push(None);
    }
    let mut cores: Vec<_> = turns.into_iter().cycle().take(workers as usize).collect();
    cores.sort_unstable();
    Ok(Placement { cores, remark })
}

/// The cores of the NUMA nodes of these interfaces; `None` where one has no node, as on a machine with
/// a single one.
fn near(nics: &[Nic]) -> Option<Vec<usize>> {
    let mut near = Vec::new();
    for nic in nics {
        let device = Path::new("/sys/class/net").join(&nic.name);
        // A /sys of another network namespace knows other interfaces by these names.
        let index = read(&device.join("ifindex"))?;
        if index.parse() != Ok(nic.index) {
            return None;
        }
        let node: u32 = read(&device.join("device/numa_node"))?.parse().ok()?;
        let list = format!("/sys/devices/system/node/node{node}/cpulist");
        near.extend(cpu_list(&read(Path::new(&list))?)?);
    }
    Some(near)
}

fn read(path: &Path) -> Option<String> {
    let text = std::fs::read_to_string(path).ok()?;
    Some(text.trim().to_owned())
}

/// As in `0-3,8`.
fn cpu_list(text: &str) -> Option<Vec<usize>> {
    let mut cores = Vec::new();
    for range in text.split(',') {
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        cores.extend(first.parse::<usize>().ok()?..=last.parse().ok()?);
    }
    Some(cores)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{FlowHash, Generic, Steering};

    fn wanted(count: Option<u32>, cores: Option<Vec<usize>>) -> Workers {
        Workers {
            count,
            cores,
            steering: Steering::Direct,
            flow_hash: FlowHash::Xdp,
            generic: Generic::Never,
        }
    }

    fn cores(count: Option<u32>, near: Option<&[usize]>, queues: u32) -> (Vec<usize>, bool) {
        let placed = place(&wanted(count, None), &[0, 1, 2, 3], near, queues).unwrap();
        let cores = placed.cores.into_iter().flatten().collect();
        (cores, placed.remark.is_some())
    }

    #[test]
    fn one_for_each_queue_on_the_last_cores_next_to_the_interface() {
        assert_eq!(cores(None, None, 1), (vec![3], false));
        assert_eq!(cores(None, None, 3), (vec![1, 2, 3], false));
        assert_eq!(cores(None, Some(&[0, 1]), 2), (vec![0, 1], false));
        // More queues than cores; a remark says so.
        assert_eq!(cores(None, Some(&[0, 1]), 8), (vec![0, 1], true));
    }

    #[test]
    fn a_number_is_obeyed_even_where_cores_have_to_be_shared() {
        assert_eq!(cores(Some(2), None, 8), (vec![2, 3], false));
        assert_eq!(cores(Some(3), Some(&[2]), 1), (vec![2, 2, 2], true));
        let nowhere = place(&wanted(Some(2), None), &[], None, 1).unwrap();
        assert_eq!(nowhere.cores, [None, None]);
    }

    #[test]
    fn cores_are_taken_as_they_are_named() {
        let placed = place(&wanted(None, Some(vec![3, 0])), &[0, 3], Some(&[0]), 9).unwrap();
        assert_eq!(placed.cores, [Some(3), Some(0)]);
        assert_eq!(placed.summary(), "2 workers on cores 3 0");
        let error = place(&wanted(None, Some(vec![4])), &[0, 3], None, 1).unwrap_err();
        assert_eq!(
            error,
            "cores: this process may not run on core 4; choose from 0 3"
        );
    }

    #[test]
    fn lists_of_cores_are_read_as_the_kernel_writes_them() {
        assert_eq!(cpu_list("0-2,8"), Some(vec![0, 1, 2, 8]));
        assert_eq!(cpu_list("5"), Some(vec![5]));
        assert_eq!(cpu_list(""), None);
    }
}
