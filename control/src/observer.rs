//! What the control socket's thread sees of the rest: the figures of all workers, put together.

use crate::admin::{AppStatus, Counters, Figures, QueueStatus, Status, WorkerStatus};
use crate::bpf::XdpProgram;
use crate::supervisor::{Counted, Team, lock};
use mpx_datapath::engine::{AddressChange, AddressStep, ConnectionPage};
use mpx_datapath::port::{FrameAccounts, QueueStatistics};
use mpx_datapath::worker::{Command, Handle, Snapshot};
use std::sync::mpsc::{self, Sender};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// How long a worker may take to answer a question of the control socket.
const STATUS_PATIENCE: Duration = Duration::from_secs(2);
/// A place in the list of connections is one in the table of a worker, which stands above it.
const PLACE_BITS: u32 = 32;

pub(crate) struct Observer {
    begin: Instant,
    team: Arc<Team>,
    workers: Vec<Handle>,
    xdp: Arc<Mutex<XdpProgram>>,
}

impl Observer {
    pub(crate) fn new(
        team: Arc<Team>,
        workers: Vec<Handle>,
        xdp: Arc<Mutex<XdpProgram>>,
    ) -> Observer {
        Observer {
            begin: Instant::now(),
            team,
            workers,
            xdp,
        }
    }

    fn ask<T>(worker: &Handle, command: impl FnOnce(Sender<T>) -> Command) -> mpsc::Receiver<T> {
        let (reply, answer) = mpsc::channel();
        worker.send(command(reply));
        answer
    }

    /// Which worker is meant, and which place in its table.
    fn place(&self, from: usize) -> Result<(usize, usize), String> {
        let worker = from >> PLACE_BITS;
        if worker >= self.workers.len() {
            return Err("there is no such worker; report it".into());
        }
        Ok((worker, from & ((1 << PLACE_BITS) - 1)))
    }

    /// After the last place of a worker comes the first of the next one.
    fn next(&self, worker: usize, place: Option<usize>) -> Option<usize> {
        let (worker, place) = match place {
            Some(place) => (worker, place),
            None => (worker + 1, 0),
        };
        (worker < self.workers.len()).then_some(worker << PLACE_BITS | place)
    }

    fn queue_status(&self, statistics: QueueStatistics) -> QueueStatus {
        QueueStatus {
            interface: self.team.plan.nics[usize::from(statistics.iface.0)]
                .name
                .clone(),
            statistics,
        }
    }
}

impl Figures for Observer {
    fn status(&self) -> Result<Status, String> {
        // Asked all at once, so that their answers are of the same moment as far as may be.
        let asked: Vec<_> = self
            .workers
            .iter()
            .map(|w| Self::ask(w, Command::Status))
            .collect();
        let answers = asked.into_iter().map(answer);
        let snapshots: Vec<Snapshot> = answers.collect::<Result<_, _>>()?;
        let verdicts = lock(&self.xdp)
            .counters()
            .map_err(|error| error.to_string())?;
        let cores = &self.team.placement.cores;
        let workers = snapshots.iter().zip(cores).map(|(snapshot, core)| {
            let metrics = &snapshot.metrics;
            WorkerStatus {
                core: *core,
                connections: snapshot.engine.connections,
                received: metrics.rx_frames,
                sent: metrics.tx_frames,
                mesh_forwards: metrics.mesh_forwards,
                mesh_received: metrics.mesh_received,
            }
        });
        let workers = workers.collect();
        let (mut frames, mut queues) = (FrameAccounts::default(), Vec::new());
        for snapshot in &snapshots {
            frames.add(&snapshot.frames);
            add_queues(&mut queues, &snapshot.queues);
        }
        let mut snapshots = snapshots.into_iter();
        let Some(Snapshot {
            mut engine,
            mut metrics,
            ..
        }) = snapshots.next()
        else {
            return Err("there is no worker; report it".into());
        };
        for snapshot in snapshots {
            engine.add(&snapshot.engine);
            metrics.add(&snapshot.metrics);
        }
        Ok(Status {
            version: env!("CARGO_PKG_VERSION"),
            uptime_ms: self.begin.elapsed().as_millis() as u64,
            engine,
            frames,
            queues: queues.into_iter().map(|q| self.queue_status(q)).collect(),
            counters: metrics.entries().into_iter().collect(),
            xdp: verdicts.into_iter().collect(),
            apps: app_status(&self.team.services),
            workers,
        })
    }

    fn connections(&self, from: usize) -> Result<ConnectionPage, String> {
        let (worker, place) = self.place(from)?;
        let handle = &self.workers[worker];
        let asked = Self::ask(handle, |reply| Command::Connections { from: place, reply });
        let mut page = answer(asked)?;
        page.next = self.next(worker, page.next);
        Ok(page)
    }

    fn services(&self) -> Vec<&str> {
        let services = self.team.config.services.iter();
        services.map(|service| service.name.as_str()).collect()
    }

    /// One worker after the other: each comes to the same result for the connections to come.
    fn change_addresses(&self, change: &AddressChange, from: usize) -> Result<AddressStep, String> {
        // Before clients are told, and once: this is called again for every part of the connections.
        let before = match (change, from) {
            (
                AddressChange::Announce {
                    service, announce, ..
                },
                0,
            ) => {
                let taken = lock(&self.xdp).take_joins(*service, announce);
                Some(taken.map_err(|error| error.to_string())?)
            }
            _ => None,
        };
        let (worker, place) = self.place(from)?;
        let change = change.clone();
        let asked = Self::ask(&self.workers[worker], |reply| Command::Addresses {
            change,
            from: place,
            reply,
        });
        let outcome = answer(asked)?;
        if let (Err(_), Some(before)) = (&outcome, before) {
            // Nobody is told, so nobody is to join.
            let restored = lock(&self.xdp).set_entries(before);
            restored.map_err(|error| error.to_string())?;
        }
        let mut step = outcome?;
        step.next = self.next(worker, step.next);
        Ok(step)
    }
}

fn answer<T>(asked: mpsc::Receiver<T>) -> Result<T, String> {
    asked
        .recv_timeout(STATUS_PATIENCE)
        .map_err(|_| "a worker does not answer; try again".to_owned())
}

/// One entry for each queue, whoever has sockets on it.
fn add_queues(sum: &mut Vec<QueueStatistics>, of_worker: &[QueueStatistics]) {
    for queue in of_worker {
        let same = |q: &&mut QueueStatistics| (q.iface, q.queue) == (queue.iface, queue.queue);
        match sum.iter_mut().find(same) {
            Some(known) => known.add(queue),
            None => sum.push(*queue),
        }
    }
    sum.sort_by_key(|q| (q.iface, q.queue));
}

/// The counters of a service are those of its apps in all workers.
fn app_status(services: &[Vec<Counted>]) -> Vec<AppStatus> {
    let Some(first) = services.first() else {
        return Vec::new();
    };
    let status = |(place, service): (usize, &Counted)| {
        let mut sum = Counters::new();
        for of_worker in services {
            let counters = of_worker[place].counters.as_ref();
            for (name, value) in counters.map(|c| c.entries()).unwrap_or_default() {
                *sum.entry(name).or_default() += value;
            }
        }
        AppStatus {
            service: service.name.clone(),
            kind: service.kind,
            counters: sum,
        }
    };
    first.iter().enumerate().map(status).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use mpx_datapath::port::IfaceId;

    #[test]
    fn a_queue_is_shown_once_with_what_all_its_sockets_received() {
        let queue = |iface, id, received| QueueStatistics {
            received,
            ..QueueStatistics::none(IfaceId(iface), id)
        };
        let mut sum = Vec::new();
        add_queues(&mut sum, &[queue(0, 1, 5), queue(1, 0, 7)]);
        add_queues(&mut sum, &[queue(0, 0, 1), queue(0, 1, 2), queue(1, 0, 3)]);
        assert_eq!(sum, [queue(0, 0, 1), queue(0, 1, 7), queue(1, 0, 10)]);
    }
}
