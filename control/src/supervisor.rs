//! `mpxd run`: starts the worker, attaches the program, and sees both to their end.

use crate::admin::{self, AppStatus, ControlSocket, Figures, QueueStatus, Status};
use crate::announce;
use crate::bpf::{LoadConfig, XdpInterface, XdpProgram};
use crate::config::{AppConfig, Config, Limits, Service};
use crate::entries::Entries;
use crate::kernel_joins;
use crate::nic;
use crate::preflight::Plan;
use crate::proxy::{Proxy, ProxyCounters};
use mpx_datapath::app::App;
use mpx_datapath::app::builtin::{Discard, Echo, Source};
use mpx_datapath::engine::{
    AddressChange, AddressStep, Buffers, ConnectionPage, Engine, EngineConfig, InterfaceConfig,
    ServiceConfig,
};
use mpx_datapath::port::QueueStatistics;
use mpx_datapath::port::xsk::{self, XskConfig, XskInterface, XskPort};
use mpx_datapath::rand::ChaChaEntropy;
use mpx_datapath::worker::{Command, Handle, Snapshot, Worker, clock};
use mpx_ebpf::{FLAG_DIRECT, FLAG_DROP_INVALID_JOINS, OWNER_BITS_DEFAULT};
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::iterator::Signals;
use std::os::fd::OwnedFd;
use std::sync::mpsc::{self, Receiver, Sender};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

/// One for now; the layout of slots, tokens and timestamps is that of many.
const WORKERS: u32 = 1;

/// How long the worker may take to answer a question of the control socket.
const STATUS_PATIENCE: Duration = Duration::from_secs(2);

/// Serves until a signal, then drains.
///
/// # Errors
/// One line for the user. Nothing stays attached in any case.
pub(crate) fn run(config: Config, plan: Plan) -> Result<(), String> {
    raise_descriptor_limit(&config);
    let socket = ControlSocket::bind(&config.control_socket)?;
    let (wake, events) = mpsc::channel();
    forward_signals(wake.clone())?;

    let mut xdp =
        XdpProgram::load(&load_config(&config, &plan)).map_err(|error| error.to_string())?;
    let services: Vec<_> = config.services.iter().map(Counted::new).collect();
    let apps = services.clone();
    let drain_ms = config.drain_timeout.as_millis() as u64;
    let summary = plan.summary(&config);
    let interfaces: Vec<_> = plan.nics.iter().map(|nic| nic.name.clone()).collect();
    watch_links(&plan)?;
    let _groups = announce::join_groups(&config, &plan)?;
    leave_kernel_joins(&mut xdp, true);

    // The worker keeps its sockets until this end is dropped: first the program is detached.
    let (release, released) = mpsc::channel::<()>();
    let (started, start) = mpsc::channel();
    let worker = thread::Builder::new()
        .name("worker-0".into())
        .spawn(move || work(&config, &plan, services, &started, &wake, &released))
        .map_err(|error| format!("cannot start a thread ({error}); raise the limit on tasks"))?;
    let ready = match start.recv() {
        Ok(ready) => ready,
        // It ended before it was ready and says why.
        Err(_) => return Err(reason(&events)),
    };
    for (interface, queue, descriptor) in ready.sockets {
        xdp.register(interface, queue, 0, descriptor)
            .map_err(|error| error.to_string())?;
    }
    xdp.attach().map_err(|error| error.to_string())?;
    tracing::info!("serving {summary}");

    let xdp = Arc::new(Mutex::new(xdp));
    watch_kernel_joins(Arc::clone(&xdp))?;
    let observer = Observer {
        begin: Instant::now(),
        worker: ready.handle.clone(),
        xdp: Arc::clone(&xdp),
        apps,
        interfaces,
    };
    answer_questions(&socket, observer)?;
    let outcome = supervise(&events, &ready.handle, drain_ms);
    lock(&xdp).detach();
    ready.handle.send(Command::Stop);
    drop(release);
    if outcome.is_ok() && worker.join().is_err() {
        return Err("the worker panicked; see its message above and report it".into());
    }
    outcome
}

/// What the main thread waits for.
enum Event {
    Signal(i32),
    /// The worker drained, or could not go on.
    WorkerEnded(Result<(), String>),
}

/// What the worker shows once its sockets are bound.
struct Ready {
    handle: Handle,
    /// Interface, queue, socket.
    sockets: Vec<(usize, u32, OwnedFd)>,
}

/// A service with the counters of its app, if that has some.
#[derive(Clone)]
struct Counted {
    name: String,
    kind: &'static str,
    counters: Option<Arc<ProxyCounters>>,
}

impl Counted {
    fn new(service: &Service) -> Counted {
        Counted {
            name: service.name.clone(),
            kind: service.app.kind(),
            counters: matches!(service.app, AppConfig::Proxy(_)).then(Arc::default),
        }
    }

    fn status(&self) -> AppStatus {
        let entries = self.counters.as_ref().map(|counters| counters.entries());
        AppStatus {
            service: self.name.clone(),
            kind: self.kind,
            counters: entries.unwrap_or_default().into_iter().collect(),
        }
    }
}

/// Waits for the worker's end; passes signals on to it.
fn supervise(events: &Receiver<Event>, worker: &Handle, drain_ms: u64) -> Result<(), String> {
    let mut draining = false;
    loop {
        match events.recv() {
            Ok(Event::Signal(_)) if draining => {
                return Err("ended by a second signal; connections still open were cut".into());
            }
            Ok(Event::Signal(signal)) => {
                draining = true;
                let name = signal_hook::low_level::signal_name(signal).unwrap_or("a signal");
                tracing::info!("{name}: draining for at most {drain_ms} ms");
                worker.send(Command::Drain {
                    deadline_ms: drain_ms,
                });
            }
            Ok(Event::WorkerEnded(outcome)) => return outcome,
            Err(mpsc::RecvError) => return Err("the worker is gone; report it".into()),
        }
    }
}

/// The body of the worker's thread.
fn work(
    config: &Config,
    plan: &Plan,
    services: Vec<Counted>,
    started: &Sender<Ready>,
    wake: &Sender<Event>,
    released: &Receiver<()>,
) {
    pin();
    let outcome = match build(config, plan, services) {
        Ok((mut worker, ready)) => {
            // If nobody waits any more, the main thread has an error of its own to report.
            if started.send(ready).is_err() {
                return;
            }
            let drained = || {
                let _ = wake.send(Event::WorkerEnded(Ok(())));
            };
            if let Err(error) = worker.run(drained) {
                let error = format!("the worker cannot go on ({error}); report it");
                let _ = wake.send(Event::WorkerEnded(Err(error)));
            }
            let _ = released.recv();
            return;
        }
        Err(error) => error,
    };
    let _ = wake.send(Event::WorkerEnded(Err(outcome)));
}

fn build(
    config: &Config,
    plan: &Plan,
    services: Vec<Counted>,
) -> Result<(Worker<XskPort>, Ready), String> {
    let interfaces: Vec<_> = plan
        .nics
        .iter()
        .map(|nic| XskInterface {
            name: nic.name.clone(),
            queues: (0..nic.queues).collect(),
        })
        .collect();
    let mtu = plan.nics.iter().map(|nic| nic.mtu_bytes).max();
    let sizes = XskConfig {
        frame_size: xsk::frame_size_for(mtu.unwrap_or(u32::MAX)),
        ..XskConfig::default()
    };
    let handle = Handle::new()
        .map_err(|error| format!("no descriptor left ({error}); raise the limit on open files"))?;
    let ports = XskPort::open(&interfaces, &[handle.waker()], &sizes);
    let mut ports = ports.map_err(|error| error.to_string())?;
    let port = ports.remove(0);
    let sockets = port
        .sockets()
        .map(|(interface, queue, socket)| {
            Ok((
                usize::from(interface.0),
                queue,
                socket.try_clone_to_owned()?,
            ))
        })
        .collect::<std::io::Result<_>>()
        .map_err(|error| format!("no descriptor left ({error}); raise the limit on open files"))?;
    let engine = engine(config, plan, services)?;
    let worker = Worker::new(port, engine, std::slice::from_ref(&handle), 0);
    Ok((worker, Ready { handle, sockets }))
}

fn engine(config: &Config, plan: &Plan, services: Vec<Counted>) -> Result<Engine, String> {
    let mut seed = [0; 32];
    getrandom::fill(&mut seed)
        .map_err(|error| format!("the kernel gives no random numbers ({error})"))?;
    let entropy = Box::new(ChaChaEntropy::from_seed(seed));
    let apps = config
        .services
        .iter()
        .zip(services)
        .map(|(service, counted)| app(service, counted))
        .collect::<Result<_, _>>()?;
    Ok(Engine::new(
        engine_config(config, plan),
        apps,
        clock(),
        entropy,
    ))
}

fn engine_config(config: &Config, plan: &Plan) -> EngineConfig {
    let interfaces = plan
        .nics
        .iter()
        .map(|nic| InterfaceConfig {
            mtu: nic.mtu_bytes as usize,
        })
        .collect();
    let services = config
        .services
        .iter()
        .zip(&plan.addresses)
        .map(|(service, addresses)| ServiceConfig {
            name: service.name.clone(),
            listen: addresses.clone(),
            versions: service.versions,
            checksum: service.checksum,
            joins: service.joins.clone(),
            addresses: service.addresses.clone(),
            congestion: service.congestion,
            ecn: service.ecn,
            fast_open: service.fast_open,
            patience: service.patience,
        })
        .collect();
    EngineConfig {
        owner: config.server.id * WORKERS,
        owners: config.server.of * WORKERS,
        owner_bits: OWNER_BITS_DEFAULT,
        connections_max: config.limits.max_connections,
        half_open_max: config.limits.max_half_open,
        stranded_max: config.limits.max_stranded,
        syn_cookies_from: config.limits.syn_cookies_from,
        pending_joins_per_source_max: config.limits.max_pending_joins_per_source,
        keys_ahead_max: config.limits.max_keys_ahead,
        fast_open_pending_max: config.limits.max_pending_fast_opens,
        subflows_per_connection_max: config.limits.max_subflows,
        buffers: Buffers {
            receive_max_bytes: config.limits.receive_buffer_max_bytes,
            send_max_bytes: config.limits.send_buffer_max_bytes,
            ..Buffers::default()
        },
        memory_max_bytes: memory_max_bytes(&config.limits),
        time_wait: config.time_wait,
        challenge_acks_per_second_max: config.limits.max_challenge_acks_per_s,
        resets_per_second_max: config.limits.max_resets_per_s,
        announced: announce::announced(config, plan),
        ..EngineConfig::new(interfaces, services)
    }
}

/// What the connections of a worker may hold: what the config says, or all workers together a quarter
/// of the machine's memory.
fn memory_max_bytes(limits: &Limits) -> usize {
    limits.memory_max_bytes.unwrap_or_else(|| {
        let system = rustix::system::sysinfo();
        let bytes = u64::from(system.mem_unit).saturating_mul(system.totalram);
        usize::try_from(bytes / 4 / u64::from(WORKERS)).unwrap_or(usize::MAX)
    })
}

fn app(service: &Service, counted: Counted) -> Result<Box<dyn App>, String> {
    Ok(match &service.app {
        AppConfig::Proxy(proxy) => {
            let proxy = Proxy::new(proxy.clone(), counted.counters.unwrap_or_default());
            Box::new(proxy.map_err(|error| {
                format!("no descriptor left ({error}); raise the limit on open files")
            })?)
        }
        AppConfig::Echo => Box::new(Echo),
        AppConfig::Discard => Box::new(Discard),
        AppConfig::Source => Box::new(Source::default()),
    })
}

/// To the last of the cores allowed: interrupts and the rest of the system favour the first.
fn pin() {
    let core = core_affinity::get_core_ids().and_then(|cores| cores.last().copied());
    if !core.is_some_and(core_affinity::set_for_current) {
        tracing::warn!("the worker could not be pinned to a core");
    }
}

fn load_config(config: &Config, plan: &Plan) -> LoadConfig {
    let drop_invalid_joins = match config.drop_invalid_joins {
        true => FLAG_DROP_INVALID_JOINS,
        false => 0,
    };
    LoadConfig {
        interfaces: plan
            .nics
            .iter()
            .map(|nic| XdpInterface {
                name: nic.name.clone(),
                index: nic.index,
                queues: nic.queues,
            })
            .collect(),
        entries: Entries::new(config, plan),
        steering: mpx_ebpf::Config {
            workers: WORKERS,
            owner_bits: OWNER_BITS_DEFAULT,
            owners: config.server.of * WORKERS,
            first_owner: config.server.id * WORKERS,
            flags: FLAG_DIRECT | drop_invalid_joins,
            // With one worker every home is the same.
            hash_key: [0; 2],
        },
    }
}

/// How long a join to a port where a kernel socket has begun to listen may still come to us.
const KERNEL_JOINS_PERIOD: Duration = Duration::from_secs(2);

/// Keeps joins for the kernel's own MPTCP sockets out of our hands as these come and go.
fn watch_kernel_joins(xdp: Arc<Mutex<XdpProgram>>) -> Result<(), String> {
    let watch = move || {
        loop {
            thread::sleep(KERNEL_JOINS_PERIOD);
            leave_kernel_joins(&mut lock(&xdp), false);
        }
    };
    thread::Builder::new()
        .name("kernel-joins".into())
        .spawn(watch)
        .map(|_| ())
        .map_err(|error| format!("cannot start a thread ({error}); raise the limit on tasks"))
}

fn leave_kernel_joins(xdp: &mut XdpProgram, first: bool) {
    match kernel_joins::listeners() {
        Ok(listeners) => match xdp.leave_joins(&listeners) {
            Ok(0) => {}
            Ok(count) => tracing::info!("{count} places where joins are the kernel's have changed"),
            Err(error) => tracing::warn!("joins for the kernel's MPTCP sockets: {error}"),
        },
        // Without MPTCP in the kernel there is nothing to ask.
        Err(error) if first => tracing::info!(
            "the kernel does not tell where its own MPTCP sockets listen ({error}); if there are \
             any, load mptcp_diag, or joins to their ports are taken for ours"
        ),
        Err(_) => {}
    }
}

/// Tells the log what happens to the interfaces while they are in use.
fn watch_links(plan: &Plan) -> Result<(), String> {
    let mut watch = nic::Watch::new(&plan.nics)
        .map_err(|error| format!("cannot watch the interfaces ({error}); allow AF_NETLINK"))?;
    thread::Builder::new()
        .name("links".into())
        .spawn(move || {
            loop {
                for change in watch.wait() {
                    tracing::warn!("{change}");
                }
            }
        })
        .map(|_| ())
        .map_err(|error| format!("cannot start a thread ({error}); raise the limit on tasks"))
}

fn forward_signals(wake: Sender<Event>) -> Result<(), String> {
    let mut signals = Signals::new([SIGTERM, SIGINT])
        .map_err(|error| format!("cannot handle signals ({error})"))?;
    thread::Builder::new()
        .name("signals".into())
        .spawn(move || {
            for signal in signals.forever() {
                if wake.send(Event::Signal(signal)).is_err() {
                    return;
                }
            }
        })
        .map(|_| ())
        .map_err(|error| format!("cannot start a thread ({error}); raise the limit on tasks"))
}

fn answer_questions(socket: &ControlSocket, observer: Observer) -> Result<(), String> {
    let listener = socket
        .listener()
        .map_err(|error| format!("no descriptor left ({error}); raise the limit on open files"))?;
    thread::Builder::new()
        .name("admin".into())
        .spawn(move || admin::serve(&listener, &observer))
        .map(|_| ())
        .map_err(|error| format!("cannot start a thread ({error}); raise the limit on tasks"))
}

/// What the control socket's thread sees of the rest.
struct Observer {
    begin: Instant,
    worker: Handle,
    xdp: Arc<Mutex<XdpProgram>>,
    apps: Vec<Counted>,
    interfaces: Vec<String>,
}

impl Observer {
    fn ask<T>(&self, command: impl FnOnce(Sender<T>) -> Command) -> Result<T, String> {
        let (reply, answer) = mpsc::channel();
        self.worker.send(command(reply));
        answer
            .recv_timeout(STATUS_PATIENCE)
            .map_err(|_| "the worker does not answer; try again".to_owned())
    }
}

impl Figures for Observer {
    fn status(&self) -> Result<Status, String> {
        let report: Snapshot = self.ask(Command::Status)?;
        let verdicts = lock(&self.xdp)
            .counters()
            .map_err(|error| error.to_string())?;
        let queue_status = |statistics: QueueStatistics| QueueStatus {
            interface: self.interfaces[usize::from(statistics.iface.0)].clone(),
            statistics,
        };
        Ok(Status {
            version: env!("CARGO_PKG_VERSION"),
            uptime_ms: self.begin.elapsed().as_millis() as u64,
            engine: report.engine,
            frames: report.frames,
            queues: report.queues.into_iter().map(queue_status).collect(),
            counters: report.metrics.entries().into_iter().collect(),
            xdp: verdicts.into_iter().collect(),
            apps: self.apps.iter().map(Counted::status).collect(),
        })
    }

    fn connections(&self, from: usize) -> Result<ConnectionPage, String> {
        self.ask(|reply| Command::Connections { from, reply })
    }

    fn services(&self) -> Vec<&str> {
        self.apps.iter().map(|app| app.name.as_str()).collect()
    }

    fn change_addresses(&self, change: &AddressChange, from: usize) -> Result<AddressStep, String> {
        let change = change.clone();
        self.ask(|reply| Command::Addresses {
            change,
            from,
            reply,
        })?
    }
}

/// Why the worker ended before it began.
fn reason(events: &Receiver<Event>) -> String {
    for event in events.iter() {
        if let Event::WorkerEnded(Err(error)) = event {
            return error;
        }
    }
    "the worker ended without a word; report it".into()
}

/// Every connection of a proxy takes a descriptor: as many as the administrator allows.
fn raise_descriptor_limit(config: &Config) {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let Rlimit { maximum, .. } = getrlimit(Resource::Nofile);
    if let Err(error) = setrlimit(
        Resource::Nofile,
        Rlimit {
            current: maximum,
            maximum,
        },
    ) {
        tracing::warn!("the limit on open files stays as it is ({error})");
    }
    let proxies = config
        .services
        .iter()
        .any(|s| matches!(s.app, AppConfig::Proxy(_)));
    let wanted = config.limits.max_connections;
    if let Some(maximum) = maximum
        && proxies
        && maximum < wanted as u64
    {
        tracing::warn!(
            "{maximum} files may be open, so proxies carry fewer than the {wanted} connections of \
             limits.max_connections; raise the limit (ulimit -Hn, LimitNOFILE=) or lower that key"
        );
    }
}

/// A thread that panicked under the lock leaves the program as usable as it was.
fn lock(xdp: &Mutex<XdpProgram>) -> std::sync::MutexGuard<'_, XdpProgram> {
    xdp.lock().unwrap_or_else(PoisonError::into_inner)
}
