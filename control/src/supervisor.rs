//! `mpxd run`: starts the workers, attaches the program, and sees all to their end.

use crate::admin::{self, ControlSocket};
use crate::announce;
use crate::bpf::{BpfFlowMap, BpfSources, LoadConfig, XdpInterface, XdpProgram};
use crate::config::{self, AppConfig, Config, FlowHash, Limits, Service};
use crate::entries::Entries;
use crate::kernel_joins;
use crate::nic;
use crate::observer::Observer;
use crate::placement::{self, Placement};
use crate::preflight::Plan;
use crate::proxy::{Proxy, ProxyCounters};
use crate::routes::{self, Question};
use mpx_datapath::app::App;
use mpx_datapath::app::builtin::{Discard, Echo, Source};
use mpx_datapath::crypto::Secrets;
use mpx_datapath::engine::{Buffers, Engine, EngineConfig, InterfaceConfig, ServiceConfig};
use mpx_datapath::port::xsk::{self, XskConfig, XskInterface, XskPort};
use mpx_datapath::rand::{ChaChaEntropy, Entropy};
use mpx_datapath::steering::Steering;
use mpx_datapath::worker::{Command, Handle, Worker, clock};
use mpx_ebpf::crowd::per_window;
use mpx_ebpf::{FLAG_DIRECT, FLAG_DROP_INVALID_JOINS, FLAG_FLOW_HASH_NIC, OWNER_BITS_DEFAULT};
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::iterator::Signals;
use std::collections::BTreeSet;
use std::os::fd::AsRawFd;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender, SyncSender};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

/// How long a worker may take to read its inbox.
const INBOX_PATIENCE: Duration = Duration::from_secs(2);
/// How much longer than it was given a worker may take to end.
const STUCK_PATIENCE: Duration = Duration::from_secs(5);

/// Serves until a signal, then drains.
///
/// # Errors
/// One line for the user. Nothing stays attached in any case.
pub(crate) fn run(config: Config, plan: Plan, placement: Placement) -> Result<(), String> {
    raise_descriptor_limit(&config);
    let socket = ControlSocket::bind(&config.control_socket)?;
    let (wake, events) = mpsc::channel();
    forward_signals(wake.clone())?;
    let team = Arc::new(Team::new(config, plan, placement)?);
    let (config, plan) = (&team.config, &team.plan);
    let load = load_config(config, plan, &team.placement, team.hash_key);
    let mut xdp = XdpProgram::load(&load).map_err(|error| error.to_string())?;
    watch_links(plan)?;
    let _groups = announce::join_groups(config, plan)?;
    leave_kernel_joins(&mut xdp, true);

    let handles: Vec<Handle> = (0..team.placement.workers())
        .map(|_| Handle::new().map_err(no_descriptor))
        .collect::<Result<_, _>>()?;
    let ports = open_ports(&team, &handles)?;
    for (worker, port) in (0..).zip(&ports) {
        for (interface, queue, socket) in port.sockets() {
            let interface = usize::from(interface.0);
            xdp.register(interface, queue, worker, socket.as_raw_fd())
                .map_err(|error| error.to_string())?;
        }
    }
    let routes = opens_subflows(config)
        .then(|| answer_routes(&handles, plan))
        .transpose()?;
    let (started, start) = mpsc::channel();
    let mut threads = Vec::new();
    for (index, port) in ports.into_iter().enumerate() {
        let (team, handles) = (Arc::clone(&team), handles.clone());
        let (started, wake, routes) = (started.clone(), wake.clone(), routes.clone());
        let maps = xdp.flow_map().and_then(|flows| Ok((flows, xdp.sources()?)));
        let maps = maps.map_err(|error| error.to_string())?;
        let body = move || {
            work(&team, index, port, maps, routes, &handles, &started, &wake);
        };
        let thread = thread::Builder::new().name(format!("worker-{index}"));
        threads.push(thread.spawn(body).map_err(no_thread)?);
    }
    for _ in &threads {
        start
            .recv()
            .map_err(|_| "a worker ended without a word; report it")??;
    }
    xdp.attach(config.workers.generic)
        .map_err(|error| error.to_string())?;
    // Not before: who hears it sends at once.
    tell_all(&handles, || Command::Announce);
    for name in &plan.untagged {
        tracing::info!(
            "{name} takes VLAN tags off frames, so that no VLAN can be served on it; if there are \
             any, run `ethtool -K {name} rxvlan off`"
        );
    }
    tracing::info!("serving {}", plan.summary(config));

    let xdp = Arc::new(Mutex::new(xdp));
    watch_kernel_joins(Arc::clone(&xdp))?;
    let observer = Observer::new(Arc::clone(&team), handles.clone(), Arc::clone(&xdp));
    answer_questions(&socket, observer)?;
    let outcome = supervise(&events, &handles, config.drain_timeout, STUCK_PATIENCE);
    lock(&xdp).detach();
    if outcome.is_ok() {
        // They keep their sockets until now: whose drain was over first still moved frames for the
        // others.
        tell_all(&handles, || Command::Stop);
        join_all(threads, STUCK_PATIENCE)?;
    }
    outcome
}

/// What has to hold for `run` beside the state of the machine; nothing is touched.
///
/// # Errors
/// One line for the user.
pub(crate) fn check(config: &Config, plan: &Plan) -> Result<Placement, String> {
    let placement = Placement::new(config, &plan.nics)?;
    let load = load_config(config, plan, &placement, [0; 2]);
    load.validate().map_err(|error| error.to_string())?;
    Ok(placement)
}

/// What all workers have in common.
pub(crate) struct Team {
    pub(crate) config: Config,
    pub(crate) plan: Plan,
    pub(crate) placement: Placement,
    /// For each worker its services with their counters.
    pub(crate) services: Vec<Vec<Counted>>,
    hash_key: [u64; 2],
    secrets: Secrets,
    fast_open_secret: [u8; 16],
}

impl Team {
    fn new(config: Config, plan: Plan, placement: Placement) -> Result<Team, String> {
        tracing::info!("{}", placement.summary());
        if let Some(remark) = &placement.remark {
            tracing::warn!("{remark}");
        }
        let mut entropy = entropy()?;
        let mut fast_open_secret = [0; 16];
        entropy.fill(&mut fast_open_secret);
        let services = || config.services.iter().map(Counted::new).collect();
        Ok(Team {
            services: (0..placement.workers()).map(|_| services()).collect(),
            hash_key: [entropy.next_u64(), entropy.next_u64()],
            secrets: Secrets::generate(&mut entropy),
            fast_open_secret,
            config,
            plan,
            placement,
        })
    }
}

/// Of a server with so many workers: its first owner, and how many there are on all servers.
fn owners(config: &Config, workers: u32) -> (u32, u32) {
    (config.server.id * workers, config.server.of * workers)
}

/// What the main thread waits for.
enum Event {
    Signal(i32),
    /// That worker drained, or could not go on.
    WorkerEnded(usize, Result<(), String>),
}

/// A service with the counters of its app, if that has some.
#[derive(Clone)]
pub(crate) struct Counted {
    pub(crate) name: String,
    pub(crate) kind: &'static str,
    pub(crate) counters: Option<Arc<ProxyCounters>>,
}

impl Counted {
    fn new(service: &Service) -> Counted {
        Counted {
            name: service.name.clone(),
            kind: service.app.kind(),
            counters: matches!(service.app, AppConfig::Proxy(_)).then(Arc::default),
        }
    }
}

/// Waits for the end of all workers; passes signals on to them. One that has not drained `patience`
/// after it should have is stuck, and nobody waits for it.
fn supervise(
    events: &Receiver<Event>,
    workers: &[Handle],
    drain: Duration,
    patience: Duration,
) -> Result<(), String> {
    let mut stuck_at: Option<Instant> = None;
    let mut left: BTreeSet<usize> = (0..workers.len()).collect();
    while !left.is_empty() {
        let event = match stuck_at {
            None => events.recv().map_err(|_| RecvTimeoutError::Disconnected),
            Some(at) => events.recv_timeout(at.saturating_duration_since(Instant::now())),
        };
        match event {
            Ok(Event::Signal(_)) if stuck_at.is_some() => {
                return Err("ended by a second signal; connections still open were cut".into());
            }
            Ok(Event::Signal(signal)) => {
                stuck_at = Some(Instant::now() + drain + patience);
                let drain_ms = drain.as_millis() as u64;
                let name = signal_hook::low_level::signal_name(signal).unwrap_or("a signal");
                tracing::info!("{name}: draining for at most {drain_ms} ms");
                tell_all(workers, || Command::Drain {
                    deadline_ms: drain_ms,
                });
            }
            Ok(Event::WorkerEnded(worker, outcome)) => {
                outcome?;
                left.remove(&worker);
            }
            Err(RecvTimeoutError::Timeout) => return Err(stuck(left)),
            Err(RecvTimeoutError::Disconnected) => {
                return Err("the workers are gone; report it".into());
            }
        }
    }
    Ok(())
}

/// Waits for the end of threads that were told to stop.
fn join_all(threads: Vec<JoinHandle<()>>, patience: Duration) -> Result<(), String> {
    let stuck_at = Instant::now() + patience;
    let running = || threads.iter().map(|thread| !thread.is_finished());
    while running().any(|runs| runs) {
        if Instant::now() >= stuck_at {
            let left = running().enumerate().filter(|(_, runs)| *runs);
            return Err(stuck(left.map(|(worker, _)| worker)));
        }
        thread::sleep(Duration::from_millis(1));
    }
    match threads.into_iter().all(|thread| thread.join().is_ok()) {
        true => Ok(()),
        false => Err("a worker panicked; see its message above and report it".into()),
    }
}

fn stuck(workers: impl IntoIterator<Item = usize>) -> String {
    let names: Vec<_> = workers.into_iter().map(|w| format!("worker-{w}")).collect();
    format!(
        "{} did not end in time and was given up, with what it had open; report it",
        names.join(" and ")
    )
}

/// A worker that is busy may have a full inbox for a moment.
fn tell_all(workers: &[Handle], command: impl Fn() -> Command) {
    let deadline = Instant::now() + INBOX_PATIENCE;
    for (index, worker) in workers.iter().enumerate() {
        while !worker.send(command()) {
            if Instant::now() >= deadline {
                tracing::warn!("worker {index} does not read its inbox");
                break;
            }
            thread::sleep(Duration::from_millis(1));
        }
    }
}

/// Whether a service opens subflows, to wherever its clients say.
fn opens_subflows(config: &Config) -> bool {
    let mut services = config.services.iter();
    services.any(|service| service.addresses.open_subflows > 0)
}

/// Starts what answers the workers' questions for routes.
fn answer_routes(handles: &[Handle], plan: &Plan) -> Result<SyncSender<Question>, String> {
    let (ask, questions) = routes::questions();
    let (handles, nics) = (handles.to_vec(), plan.nics.clone());
    let body = move || routes::serve(&questions, &handles, &nics);
    let thread = thread::Builder::new().name("routes".into());
    thread.spawn(body).map_err(no_thread)?;
    Ok(ask)
}

/// The body of a worker's thread.
#[expect(clippy::too_many_arguments, reason = "all that it works with")]
fn work(
    team: &Team,
    index: usize,
    port: XskPort,
    (flow_map, sources): (BpfFlowMap, BpfSources),
    routes: Option<SyncSender<Question>>,
    handles: &[Handle],
    started: &Sender<Result<(), String>>,
    wake: &Sender<Event>,
) {
    if let Some(core) = team.placement.cores[index]
        && !placement::pin(core)
    {
        tracing::warn!("worker {index} could not be pinned to core {core}");
    }
    let mut engine = match engine(team, index) {
        Ok(engine) => engine,
        Err(error) => {
            let _ = started.send(Err(error));
            return;
        }
    };
    engine.set_flow_map(Box::new(flow_map));
    engine.set_sources(Box::new(sources));
    let mut worker = Worker::new(port, engine, handles, index);
    if let Some(routes) = routes {
        // What finds no room is answered by the engine's patience.
        let ask = move |to| {
            let _ = routes.try_send(Question { worker: index, to });
        };
        worker.ask_routes(Box::new(ask));
    }
    // If nobody waits any more, the main thread has an error of its own to report.
    if started.send(Ok(())).is_err() {
        return;
    }
    let drained = || {
        let _ = wake.send(Event::WorkerEnded(index, Ok(())));
    };
    if let Err(error) = worker.run(drained) {
        let error = format!("worker {index} cannot go on ({error}); report it");
        let _ = wake.send(Event::WorkerEnded(index, Err(error)));
    }
}

/// One for each worker, with a socket on every queue.
fn open_ports(team: &Team, handles: &[Handle]) -> Result<Vec<XskPort>, String> {
    let nics = &team.plan.nics;
    let interfaces: Vec<_> = nics
        .iter()
        .map(|nic| XskInterface {
            name: nic.name.clone(),
            queues: (0..nic.queues).collect(),
        })
        .collect();
    let mtu = nics.iter().map(|nic| nic.mtu_bytes).max();
    let sizes = XskConfig {
        frames: xsk::frames_for(handles.len()),
        frame_size: xsk::frame_size_for(mtu.unwrap_or(u32::MAX)),
        ..XskConfig::default()
    };
    let wakers: Vec<_> = handles.iter().map(Handle::waker).collect();
    XskPort::open(&interfaces, &wakers, &sizes).map_err(|error| error.to_string())
}

fn entropy() -> Result<ChaChaEntropy, String> {
    let mut seed = [0; 32];
    getrandom::fill(&mut seed)
        .map_err(|error| format!("the kernel gives no random numbers ({error})"))?;
    Ok(ChaChaEntropy::from_seed(seed))
}

fn engine(team: &Team, index: usize) -> Result<Engine, String> {
    let services = team.config.services.iter();
    let apps = services
        .zip(&team.services[index])
        .map(|(service, counted)| app(service, counted.clone()))
        .collect::<Result<_, _>>()?;
    let config = engine_config(team, index);
    Ok(Engine::new(config, apps, clock(), Box::new(entropy()?)))
}

fn engine_config(team: &Team, index: usize) -> EngineConfig {
    let Team { config, plan, .. } = team;
    let workers = team.placement.workers();
    let worker = index as u32;
    let (first_owner, owners) = owners(config, workers);
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
            closing: service.closing,
        })
        .collect();
    EngineConfig {
        owner: first_owner + worker,
        owners,
        owner_bits: OWNER_BITS_DEFAULT,
        steering: Steering {
            worker,
            workers,
            hash_key: team.hash_key,
            flow_hash_nic: config.workers.flow_hash == FlowHash::Nic,
            ..Steering::default()
        },
        secrets: Some(team.secrets.clone()),
        fast_open_secret: Some(team.fast_open_secret),
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
        memory_max_bytes: memory_max_bytes(&config.limits, workers),
        time_wait: config.time_wait,
        challenge_acks_per_second_max: config.limits.max_challenge_acks_per_s,
        resets_per_second_max: config.limits.max_resets_per_s,
        announced: announce::announced(config, plan),
        asks_routes: opens_subflows(config),
        ..EngineConfig::new(interfaces, services)
    }
}

/// What the connections of a worker may hold: what the config says, or all workers together a quarter
/// of the machine's memory.
fn memory_max_bytes(limits: &Limits, workers: u32) -> usize {
    limits.memory_max_bytes.unwrap_or_else(|| {
        let system = rustix::system::sysinfo();
        let bytes = u64::from(system.mem_unit).saturating_mul(system.totalram);
        usize::try_from(bytes / 4 / u64::from(workers)).unwrap_or(usize::MAX)
    })
}

fn app(service: &Service, counted: Counted) -> Result<Box<dyn App>, String> {
    Ok(match &service.app {
        AppConfig::Proxy(proxy) => {
            let proxy = Proxy::new(proxy.clone(), counted.counters.unwrap_or_default());
            Box::new(proxy.map_err(no_descriptor)?)
        }
        AppConfig::Echo => Box::new(Echo),
        AppConfig::Discard => Box::new(Discard),
        AppConfig::Source => Box::new(Source::default()),
    })
}

fn load_config(
    config: &Config,
    plan: &Plan,
    placement: &Placement,
    hash_key: [u64; 2],
) -> LoadConfig {
    let workers = placement.workers();
    let (first_owner, owners) = owners(config, workers);
    let mut flags = 0;
    if config.workers.steering == config::Steering::Direct {
        flags |= FLAG_DIRECT;
    }
    if config.workers.flow_hash == FlowHash::Nic {
        flags |= FLAG_FLOW_HASH_NIC;
    }
    if config.drop_invalid_joins {
        flags |= FLAG_DROP_INVALID_JOINS;
    }
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
            workers,
            owner_bits: OWNER_BITS_DEFAULT,
            owners,
            first_owner,
            flags,
            hash_key,
            syns_per_window: per_window(config.limits.max_syns_per_s),
            strays_per_window: per_window(config.limits.max_strays_per_s),
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
        .map_err(no_thread)
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
        .map_err(no_thread)
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
        .map_err(no_thread)
}

fn answer_questions(socket: &ControlSocket, observer: Observer) -> Result<(), String> {
    let listener = socket.listener().map_err(no_descriptor)?;
    thread::Builder::new()
        .name("admin".into())
        .spawn(move || admin::serve(&listener, &observer))
        .map(|_| ())
        .map_err(no_thread)
}

fn no_descriptor(error: std::io::Error) -> String {
    format!("no descriptor left ({error}); raise the limit on open files")
}

fn no_thread(error: std::io::Error) -> String {
    format!("cannot start a thread ({error}); raise the limit on tasks")
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
pub(crate) fn lock(xdp: &Mutex<XdpProgram>) -> std::sync::MutexGuard<'_, XdpProgram> {
    xdp.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MOMENT: Duration = Duration::from_millis(50);

    #[test]
    fn a_worker_that_never_answers_is_waited_for_no_longer_than_it_has() {
        let (wake, events) = mpsc::channel();
        let workers: Vec<_> = (0..3).map(|_| Handle::new().unwrap()).collect();
        wake.send(Event::Signal(SIGTERM)).unwrap();
        wake.send(Event::WorkerEnded(0, Ok(()))).unwrap();
        wake.send(Event::WorkerEnded(2, Ok(()))).unwrap();
        let start = Instant::now();
        let error = supervise(&events, &workers, MOMENT, MOMENT).unwrap_err();
        assert!(error.starts_with("worker-1 did not end"), "{error}");
        assert!(start.elapsed() >= 2 * MOMENT);

        // Where all have answered there is no waiting.
        wake.send(Event::Signal(SIGTERM)).unwrap();
        for worker in 0..3 {
            wake.send(Event::WorkerEnded(worker, Ok(()))).unwrap();
        }
        let for_ever = Duration::from_secs(3600);
        assert_eq!(supervise(&events, &workers, for_ever, for_ever), Ok(()));
    }

    #[test]
    fn a_thread_that_never_ends_is_named() {
        let (release, released) = mpsc::channel::<()>();
        let stuck = thread::spawn(move || {
            let _ = released.recv();
        });
        let threads = vec![thread::spawn(|| ()), stuck];
        let error = join_all(threads, MOMENT).unwrap_err();
        assert!(error.starts_with("worker-1 did not end"), "{error}");
        drop(release);
        assert_eq!(join_all(vec![thread::spawn(|| ())], MOMENT * 100), Ok(()));
    }
}
