//! One seed from the first frame to the last, and what must hold meanwhile and afterwards.

use crate::flood;
use crate::model::client::{Client, Mode};
use crate::model::sim::{Family, Sim};
use crate::model::subflow::{Role, State};
use crate::model::{effort, stream};
use crate::scenario::{Abort, Close, Leave, Plan, Reading, Scenario, Signal, healed};
use mpx_datapath::app::CloseCause;
use mpx_datapath::engine::EngineReport;
use mpx_datapath::time::{Duration, Instant};
use std::num::NonZero;

/// How often clients and apps look at what they have to do.
const TICK: Duration = Duration::from_millis(25);
/// So many ticks between two looks at the limits.
const TICKS_PER_CHECK: u64 = 20;
/// With the paths in order everything comes to its end within this time,
const CONVERGENCE: Duration = Duration::from_secs(600);
/// and where middleboxes spoil them, within this.
const CONVERGENCE_SPOILT: Duration = Duration::from_secs(1800);
/// A side whose peer is gone without a word gives up after this time with the paths in order.
const PATIENCE: Duration = Duration::from_secs(20);
/// Any timeout that grew while the paths were bad has passed this long after they are in order: who
/// answers is given up no more.
const AMNESTY: Duration = Duration::from_secs(150);
/// A client that has no subflow left tries to open one so often.
const REJOINS_MAX: usize = 20;
/// Address IDs under which clients listen, one for each path; subflows are numbered from 0.
const LISTENING_ID: u8 = 100;
/// Longer than any timer of the engine.
const LAST_TIMER: Duration = Duration::from_secs(300);

/// What became of the connections of a run.
#[derive(Clone, Copy, Debug, Default)]
pub struct Outcome {
    /// Both streams whole and closed.
    pub whole: u64,
    /// Aborted by client or app, as was the plan.
    pub aborted: u64,
    /// Given up by a timer or cut off by subflows that left, after too many faults.
    pub given_up: u64,
    pub octets: u64,
    /// Virtual time with the paths in order until the last client was done.
    pub converged: Duration,
}

struct Runner<'a> {
    scenario: &'a Scenario,
    sim: Sim,
    began: Instant,
    actors: Vec<Actor<'a>>,
    /// Subflows given up until the paths had been in order for a while.
    given_up_early: Option<u64>,
}

/// A client while it plays its part.
struct Actor<'a> {
    plan: &'a Plan,
    /// When it starts, once that is known.
    starts: Option<Duration>,
    upload: Vec<u8>,
    /// Its place among the simulation's clients, once it has started.
    client: Option<usize>,
    written: usize,
    closed: bool,
    joins: usize,
    leaves: usize,
    resizes: usize,
    signals: usize,
    gulps: usize,
    blackouts: usize,
    /// It has no subflow, and when it tries again to open one, on which path.
    rejoin: Option<(Duration, usize)>,
    rejoins: usize,
    left: bool,
    aborted: bool,
    /// Somebody else came with its address and port,
    replaced: bool,
    /// and the server was not done with it.
    cut_short: bool,
    /// One of its two ends waited for the other one for too long.
    impatient: bool,
    /// Only one of the two ends knew of the end when last looked at.
    left_alone: bool,
}

/// Plays a scenario. Panics when something happens that may not.
pub fn play(scenario: &Scenario) -> Outcome {
    let sim = Sim::new(scenario.sim.clone());
    let actors = scenario
        .clients
        .iter()
        .map(|plan| Actor {
            plan,
            starts: plan.after.is_none().then_some(plan.start),
            upload: stream(plan.config.seed, plan.upload_bytes),
            client: None,
            written: 0,
            closed: false,
            joins: 0,
            leaves: 0,
            resizes: 0,
            signals: 0,
            gulps: 0,
            blackouts: 0,
            rejoin: None,
            rejoins: 0,
            left: false,
            aborted: false,
            replaced: false,
            cut_short: false,
            impatient: false,
            left_alone: false,
        })
        .collect();
    let mut runner = Runner {
        scenario,
        began: sim.now,
        sim,
        actors,
        given_up_early: None,
    };
    runner.bad_times();
    let converged = runner.good_times();
    Outcome {
        converged,
        ..runner.verdict()
    }
}

impl Runner<'_> {
    fn bad_times(&mut self) {
        let mut weather = self.scenario.weather.iter().peekable();
        let end = self.began + self.scenario.faults;
        let mut tick = 0;
        while self.sim.now < end {
            let passed = self.sim.now.since(self.began);
            while let Some((_, path, change)) = weather.next_if(|w| w.0 <= passed) {
                self.sim.net.paths[*path] = *change;
            }
            self.act(passed, true);
            if let Some(flood) = &self.scenario.flood {
                flood::strike(&mut self.sim, flood, tick);
            }
            self.sim.server.refill_keys(self.scenario.idle_draws);
            self.advance(tick);
            tick += 1;
        }
    }

    fn good_times(&mut self) -> Duration {
        for (path, base) in self.sim.net.paths.iter_mut().zip(&self.scenario.sim.paths) {
            *path = healed(base);
        }
        self.sim.server.heal();
        self.sim.app.read_all();
        let began = self.sim.now;
        let mut tick = 0;
        let mut patience = PATIENCE;
        let mut clients = self.scenario.clients.iter();
        let spoilt = clients.any(|plan| plan.config.quirks.distrusts_paths);
        let limit = if spoilt {
            CONVERGENCE_SPOILT
        } else {
            CONVERGENCE
        };
        while !self.all_done() {
            let passed = self.sim.now.since(began);
            assert!(
                passed < limit,
                "no end with the paths in order for {passed:?}: {}",
                self.sim.describe()
            );
            if passed >= AMNESTY {
                let given_up = self.sim.server.count(|m| m.subflow_timeouts);
                self.given_up_early.get_or_insert(given_up);
            }
            if passed >= patience {
                patience += PATIENCE;
                self.lose_patience();
            }
            self.act(self.sim.now.since(self.began), false);
            self.advance(tick);
            tick += 1;
        }
        self.sim.now.since(began)
    }

    fn advance(&mut self, tick: u64) {
        self.sim.app.grant();
        self.sim.run_for(TICK);
        for client in &self.sim.clients {
            let srtt = |local, remote| self.sim.server.srtt(local, remote);
            client.check_repairs(self.sim.now, srtt);
        }
        if tick.is_multiple_of(TICKS_PER_CHECK) {
            self.check_limits();
        }
    }

    /// Everybody does what is due.
    fn act(&mut self, passed: Duration, faults: bool) {
        for i in 0..self.actors.len() {
            let actor = &self.actors[i];
            let (plan, starts) = (actor.plan, actor.starts);
            if starts.is_some_and(|at| at <= passed) && actor.client.is_none() {
                self.start(i, faults);
            }
            if let Some((before, _)) = plan.after
                && starts.is_none()
                && self.is_over(before)
            {
                self.actors[i].starts = Some(passed + plan.start);
            }
            self.actors[i].act(&mut self.sim, passed, faults);
        }
    }

    /// The client is done, as far as it knows.
    fn is_over(&self, i: usize) -> bool {
        let client = self.actors[i].client.map(|c| &self.sim.clients[c]);
        client.is_some_and(Client::closed) && self.actors[i].rejoin.is_none()
    }

    fn start(&mut self, i: usize, faults: bool) {
        let plan = self.actors[i].plan;
        let mut config = plan.config.clone();
        let before = plan.after.map(|(before, again)| {
            let client = self.actors[before].client;
            (before, client.expect("it was over"), again)
        });
        if let Some((_, c, _)) = before
            && let Some(cookie) = self.sim.clients[c].cookie
            && plan.inherits_cookie
        {
            config.fast_open = Some(cookie);
        }
        let c = match before {
            None => self.sim.connect(config),
            Some((_, c, again)) => self.sim.connect_again(config, c, again),
        };
        if let Some((before, gone, _)) = before {
            let done = self.sim.app.with_client(gone, |r| r.closed.is_some());
            self.actors[before].replaced = true;
            self.actors[before].cut_short = done != Some(true);
        }
        self.sim.clients[c].set_reading(plan.reading == Reading::Eager);
        self.actors[i].client = Some(c);
        let mut log = self.sim.app.log.borrow_mut();
        log.for_client.insert(c, plan.app);
        if let Some(sip) = plan.sip_bytes.filter(|_| faults) {
            log.sips.insert(c, sip);
        }
    }

    /// What a side cannot know because nobody told it: its peer is gone, and it has nothing to send
    /// that would draw an answer.
    fn lose_patience(&mut self) {
        for actor in &mut self.actors {
            let Some(c) = actor.client.filter(|_| actor.rejoin.is_none()) else {
                continue;
            };
            let client = &mut self.sim.clients[c];
            let cause = self.sim.app.with_client(c, |r| r.closed);
            let left_alone = match cause {
                Some(None) => client.closed(),
                Some(Some(_)) => !client.closed(),
                None => client.established() && !client.closed(),
            };
            // Seen twice: what is on its way may still bring the end.
            if !std::mem::replace(&mut actor.left_alone, left_alone) || !left_alone {
                continue;
            }
            actor.impatient = true;
            if client.closed() {
                self.sim.app.abort(c);
            } else {
                client.fastclose();
            }
        }
    }

    fn all_done(&self) -> bool {
        let closed = |c| self.sim.app.with_client(c, |r| r.closed.is_some());
        self.actors.iter().all(|a| {
            a.rejoin.is_none()
                && a.client
                    .is_some_and(|c| self.sim.clients[c].closed() && closed(c).unwrap_or(true))
        })
    }

    /// Limits that are never passed, and acknowledgments that are never ahead of delivery.
    fn check_limits(&self) {
        for report in self.sim.server.reports(usize::MAX) {
            self.check_limits_of(&report);
        }
    }

    fn check_limits_of(&self, report: &EngineReport) {
        let config = &self.scenario.sim;
        assert!(report.connections <= config.connections_max, "{report:?}");
        assert!(report.half_open <= config.half_open_max, "{report:?}");
        // Those that follow a connection in TIME-WAIT are kept even so.
        let recycled = self.sim.server.count(|m| m.time_wait_recycled) as usize;
        let kept_max = config.syn_cookies_from.saturating_add(recycled);
        assert!(report.half_open <= kept_max, "{report:?}");
        assert!(report.time_wait <= config.time_wait_max, "{report:?}");
        let memory = &report.memory;
        assert!(memory.used_bytes <= memory.limit_bytes, "{memory:?}");
        let held: usize = report.conns.iter().map(|c| c.memory_bytes).sum();
        assert_eq!(held, memory.used_bytes, "the account is wrong: {report:?}");
        for conn in &report.conns {
            assert!(
                conn.kept_bytes() <= conn.memory_bytes,
                "more is kept than charged for: {conn:?}"
            );
            assert!(
                // RFC 8684 §3.3.4: an edge that may not go back can pass the room by half of it.
                conn.unread_bytes <= config.receive_buffer_bytes * 3 / 2
                    && conn.send_buffered_bytes <= config.send_buffer_bytes
                    && conn.subflows.len() <= config.subflows_max,
                "a limit is passed: {conn:?}"
            );
            let is_peer = |c: &Client| c.subflows[0].local == conn.peer;
            let mut clients = self.sim.clients.iter();
            let Some(c) = clients.position(is_peer) else {
                continue;
            };
            // Of several with that address the report does not say which one it means.
            let only = !clients.any(is_peer);
            let record = self
                .sim
                .app
                .with_client(c, |r| (r.received.len(), r.closed));
            // What an app has aborted it has no more use for.
            if let (true, Some((delivered, closed))) = (only, record)
                && closed != Some(CloseCause::Aborted)
            {
                let client = &self.sim.clients[c];
                let acknowledged = client.acknowledged().min(client.written());
                assert!(
                    (delivered + conn.unread_bytes) as u64 >= acknowledged,
                    "{acknowledged} octets are acknowledged, {delivered} delivered: {conn:?}"
                );
            }
        }
    }

    /// After the end: nothing is left anywhere, and what was delivered was sent.
    fn verdict(mut self) -> Outcome {
        self.sim.finish();
        self.sim.run_for(LAST_TIMER);
        let server = &self.sim.server;
        assert!(
            server.next_timeout().is_none(),
            "a timer is left: {:?} at {:?}",
            server.next_timeout(),
            self.sim.now
        );
        let noticed = server.count(|m| {
            m.drop_truncated
                + m.drop_not_tcp
                + m.drop_fragment
                + m.drop_bad_header
                + m.drop_bad_ip_checksum
                + m.drop_bad_tcp_checksum
                + m.drop_too_deep
                + m.icmp_in_csum_errors
                + m.icmp_in_errors
        });
        assert_eq!(
            noticed, self.sim.corrupted_to_server,
            "frames dropped as damaged, and frames that were"
        );
        let mut timeouts =
            server.count(|m| m.subflow_timeouts + m.give_up_timeouts + m.stranded_overflow);
        if self.scenario.flood.is_none() {
            // Strangers complete no handshake.
            timeouts += server.count(|m| m.syn_ack_timeouts);
        }
        self.check_given_up();
        let mut outcome = Outcome::default();
        for actor in &self.actors {
            actor.judge(&self.sim, timeouts > 0, &mut outcome);
        }
        outcome
    }
}

impl Runner<'_> {
    /// No subflow is given up on a path that is in order, if its client is still there.
    fn check_given_up(&self) {
        let Some(early) = self.given_up_early else {
            return;
        };
        let services = &self.scenario.sim.more_services;
        let hasty = services.iter().any(|s| {
            // A dead peer is found sooner there than by a timeout that was backed off.
            s.patience.user_timeout.is_some() || s.patience.keepalive.is_some()
        });
        let silent = |c: &Client| {
            c.config.quirks.distrusts_paths || c.subflows.iter().any(|s| s.vanished || s.gave_up)
        };
        let given_up = self.sim.server.count(|m| m.subflow_timeouts);
        assert!(
            given_up == early || hasty || self.sim.clients.iter().any(silent),
            "{} subflows are given up with the paths in order: {}",
            given_up - early,
            self.sim.describe()
        );
    }
}

impl Actor<'_> {
    fn act(&mut self, sim: &mut Sim, passed: Duration, faults: bool) {
        let plan = self.plan;
        let (Some(c), Some(starts)) = (self.client, self.starts) else {
            return;
        };
        if self.aborted || self.replaced {
            self.rejoin = None;
            return;
        }
        let passed = passed - starts;
        if let Some((at, how)) = plan.abort
            && at <= passed
        {
            self.aborted = true;
            let client = &mut sim.clients[c];
            client.stop_listening();
            match how {
                Abort::Reset => (0..client.subflows.len()).for_each(|i| client.reset(i)),
                Abort::FastcloseReset => client.fastclose(),
                Abort::FastcloseAck if client.mode == Mode::Multipath => client.fastclose_by_ack(),
                Abort::FastcloseAck => client.fastclose(),
                Abort::Vanish => client.vanish(),
            }
            return;
        }
        self.write(sim, c, faults);
        let client = &mut sim.clients[c];
        match plan.reading {
            Reading::Slow(bytes) if faults => client.read_some(bytes),
            Reading::Slow(_) | Reading::Never if !faults => client.set_reading(true),
            _ => {}
        }
        while plan.gulps.get(self.gulps).is_some_and(|at| *at <= passed) {
            self.gulps += 1;
            client.read_some(usize::MAX);
        }
        while let Some((_, bytes)) = plan.resizes.get(self.resizes).filter(|r| r.0 <= passed) {
            self.resizes += 1;
            client.resize_buffer(*bytes);
        }
        if !faults && client.config.receive_buffer_bytes < plan.config.receive_buffer_bytes {
            client.resize_buffer(plan.config.receive_buffer_bytes);
        }
        if client.mode != Mode::Multipath {
            return;
        }
        while let Some(join) = plan
            .joins
            .get(self.joins)
            .filter(|j| j.at <= passed && sim.clients[c].may_join())
        {
            self.joins += 1;
            let over = client_is_closing(sim, c);
            if !over {
                sim.join_as(c, join.path, join.backup, join.again);
            }
        }
        while let Some((_, signal)) = plan.signals.get(self.signals).filter(|s| s.0 <= passed) {
            self.signals += 1;
            self.signal(sim, c, *signal);
        }
        while let Some((_, how)) = plan.leaves.get(self.leaves).filter(|l| l.0 <= passed) {
            self.leaves += 1;
            self.leave(sim, c, *how);
        }
        self.black_out(sim, c, passed);
    }

    /// All subflows go; after a while, and again and again if need be, one is opened.
    fn black_out(&mut self, sim: &mut Sim, c: usize, passed: Duration) {
        let blackouts = &self.plan.blackouts;
        while let Some(blackout) = blackouts.get(self.blackouts).filter(|b| b.at <= passed) {
            self.blackouts += 1;
            if sim.clients[c].is_confirmed() && !client_is_closing(sim, c) {
                sim.clients[c].lose_subflows(blackout.silent);
                self.rejoin = Some((passed + blackout.pause, blackout.path));
                self.rejoins = 0;
                // Its resets leave in this tick.
                return;
            }
        }
        let Some((at, path)) = self.rejoin else {
            return;
        };
        let client = &sim.clients[c];
        if client.subflows.iter().any(|s| s.open()) {
            self.rejoin = None;
            return;
        }
        let over = client.fastclosed || client.all_acknowledged() && client.peer_finished();
        // Nobody knows its token any more.
        let unknown = client.subflows.last().map(|s| s.state) == Some(State::Reset(Some(1)));
        if over || unknown || self.rejoins == REJOINS_MAX {
            self.rejoin = None;
        } else if at <= passed && !client.subflows.iter().any(|s| s.alive()) {
            self.rejoins += 1;
            sim.join_as(c, path, false, None);
            let paths = &sim.config.paths;
            let others = (1..=paths.len()).map(|n| (path + n) % paths.len());
            let mut sound = others.filter(|&n| paths[n].meddling.is_harmless());
            let next = sound.next().unwrap_or(path);
            self.rejoin = Some((passed + Duration::from_secs(1), next));
        }
    }

    fn write(&mut self, sim: &mut Sim, c: usize, faults: bool) {
        let client = &mut sim.clients[c];
        let left = &self.upload[self.written..];
        let n = match self.plan.write_bytes {
            n if n > 0 && faults => n.min(left.len()),
            _ => left.len(),
        };
        if n > 0 {
            client.send(&left[..n]);
            self.written += n;
        }
        let last = match self.plan.close {
            Close::First => true,
            Close::Last => client.received().len() >= self.plan.download_bytes(),
        };
        if self.written == self.upload.len() && last && !self.closed {
            self.closed = true;
            client.close_write();
        }
    }

    fn signal(&mut self, sim: &mut Sim, c: usize, signal: Signal) {
        let (mut open, mut gone) = (Vec::new(), Vec::new());
        for (i, s) in sim.clients[c].subflows.iter().enumerate() {
            match s.open() {
                true => open.push(i),
                false => gone.push(i as u8),
            }
        }
        let Some(of) = NonZero::new(open.len()) else {
            return;
        };
        // An address that nothing uses: nobody has to be there.
        let family = Family::of(self.plan.config.server);
        let unused = family.host(0, 9);
        let client = &mut sim.clients[c];
        match signal {
            Signal::Priority { on, backup } if client.config.version == 0 && on % 2 == 1 => {
                // RFC 6824 §3.3.8: of all subflows from one of its addresses.
                let named = open[(on / 2) % of] as u8;
                client.prioritise_address(open[on % of], named, backup);
            }
            Signal::Priority { on, backup } => client.prioritise(open[on % of], backup),
            Signal::Advertise { on } => client.advertise(open[on % of], 200, unused),
            Signal::Withdraw { on } => {
                // That of a subflow that is over, or one that was never named.
                client.withdraw(open[on % of], gone.first().copied().unwrap_or(200));
            }
            Signal::Listen { on, path, port } => {
                let i = open[on % of];
                let own_port = client.subflows[i].local.port();
                let address = family.client_at(path, c, port.unwrap_or(own_port));
                client.listen(i, LISTENING_ID + path as u8, address, port.is_some());
            }
        }
    }

    /// One subflow goes, if another one is there to carry on.
    fn leave(&mut self, sim: &mut Sim, c: usize, how: Leave) {
        let client = &mut sim.clients[c];
        let open: Vec<usize> = (0..client.subflows.len())
            .filter(|i| client.subflows[*i].open() && !client.subflows[*i].leaving)
            .collect();
        if open.len() < 2 {
            return;
        }
        self.left = true;
        // The initial one as often as a joined one.
        let i = match self.leaves % 2 {
            0 => open[0],
            _ => open[open.len() - 1],
        };
        match how {
            Leave::Reset => client.reset(i),
            Leave::Fin => client.leave(i),
        }
    }

    fn judge(&self, sim: &Sim, timeouts: bool, outcome: &mut Outcome) {
        let Some(c) = self.client else { return };
        let client = &sim.clients[c];
        let expected = match self.plan.app.echo {
            true => self.upload.clone(),
            false => stream(self.plan.app.seed, self.plan.app.send_bytes),
        };
        assert_prefix("the client", client.received(), &expected);
        let local = client.subflows[0].local;
        assert_eq!(
            client.beyond_window, 0,
            "octets from beyond the window of {local}"
        );
        let record = sim.app.with_client(c, Clone::clone);
        let delivered = record.as_ref().map_or(0, |r| r.received.len());
        if let Some(record) = &record {
            assert_prefix("the app", &record.received, &self.upload);
        }
        outcome.octets += (delivered + client.received().len()) as u64;
        let cause = record.as_ref().and_then(|r| r.closed);
        let app_aborts = self.plan.app.abort_after_bytes.is_some();
        if cause == Some(CloseCause::Finished) {
            let acknowledged = client.acknowledged().min(client.written());
            assert!(
                delivered as u64 >= acknowledged,
                "{acknowledged} octets are acknowledged, {delivered} were delivered to {local}"
            );
        }
        if self.aborted || (app_aborts && cause != Some(CloseCause::Finished)) {
            outcome.aborted += 1;
            return;
        }
        let whole = cause == Some(CloseCause::Finished)
            && delivered == self.upload.len()
            && client.received().len() == expected.len()
            && client.peer_finished();
        if whole {
            outcome.whole += 1;
            return;
        }
        let late = cause == Some(CloseCause::TimedOut) && sim.server.count(|m| m.data_timeouts) > 0;
        let excused = late
            || timeouts
            || client.gave_up()
            || self.blackouts > 0 && sim.config.patience.without_subflow.is_zero()
            || client.config.quirks.distrusts_paths
            || self.left
            || self.cut_short
            || self.impatient;
        assert!(
            excused,
            "{local} ended as {cause:?} with {delivered} of {} octets up and {} of {} down for no reason: {}",
            self.upload.len(),
            client.received().len(),
            expected.len(),
            sim.describe()
        );
        outcome.given_up += 1;
    }
}

fn client_is_closing(sim: &Sim, c: usize) -> bool {
    let client = &sim.clients[c];
    let initial_done = client
        .subflows
        .iter()
        .any(|s| s.role == Role::Initial && s.state == State::SynSent);
    initial_done || client.closed() || client.all_acknowledged() && client.peer_finished()
}

fn assert_prefix(whose: &str, got: &[u8], sent: &[u8]) {
    let same = got.iter().zip(sent).take_while(|(a, b)| a == b).count();
    assert!(
        same == got.len(),
        "{whose} has {} octets of {} that were sent, and they part at {same}",
        got.len(),
        sent.len()
    );
}

/// Seeds of a bounded sweep.
pub fn bounded_sweep() -> u64 {
    150 * effort()
}
