//! The end of both streams, in every order, and whose FIN comes first on the subflow then
//! (RFC 8684 §3.3.3).

use super::pen::{ISS, JOIN_PORT, KEY, Pen};
use super::script::{ACK, FIN};
use crate::model::apps::Behaviour;
use mpx_datapath::app::CloseCause;
use mpx_datapath::engine::Closing;
use mpx_datapath::time::Duration;
use mpx_datapath::wire::mptcp::{DsnWidth, Dss, DssMapping, MpFastclose};
use mpx_datapath::wire::tcp::{TcpFlags, TcpHeader, TcpOptions};

const MS: Duration = Duration::from_millis(1);
const RTT: Duration = Duration::from_millis(100);
/// RFC 6298 §2.2, after one measurement of the round trip: RTT + 4 * RTT / 2.
pub const RTO: Duration = Duration::from_millis(300);
/// The client's next sequence number.
pub const NEXT: u32 = ISS.wrapping_add(1);

const CLOSING: Closing = Closing {
    passive: true,
    hold_peer_first: Duration::from_secs(3),
    hold_we_first: Duration::from_secs(1),
    fin_timeout: Duration::from_secs(10),
};
const AT_ONCE: Duration = Duration::ZERO;

/// How both streams end: `s`, the app ends its own (it does by itself when the client has); `c`, the
/// client's DATA_FIN; `b`, the same with an acknowledgment of the server's; `a`, that alone. And how long
/// our FIN waits for the client's.
const ORDERS: [(&str, Duration); 9] = [
    ("ca", CLOSING.hold_peer_first),
    ("cca", CLOSING.hold_peer_first),
    ("cb", CLOSING.hold_peer_first),
    ("sac", CLOSING.hold_we_first),
    ("sab", CLOSING.hold_we_first),
    ("sb", CLOSING.hold_we_first),
    ("sbb", CLOSING.hold_we_first),
    // They crossed.
    ("sca", AT_ONCE),
    ("scb", AT_ONCE),
];

/// A connection whose streams have ended in this order; whether its FIN has left by now.
fn ended(order: &str, closing: Closing) -> (Pen, bool) {
    let mut pen = Pen::closing(closing);
    let mut fin = false;
    for step in order.chars() {
        match step {
            's' => pen.app_closes(),
            'a' => pen.end(NEXT, ACK, false, true),
            _ => pen.end(NEXT, ACK, true, step == 'b'),
        }
        let answers = pen.headers();
        fin |= answers.iter().any(is_fin);
        let acked = answers.iter().any(|answer| pen.acks_data_fin(answer));
        assert!(acked || !"cb".contains(step), "{step} of {order}");
    }
    let closed = pen.app.record().closed;
    assert_eq!(closed, Some(CloseCause::Finished), "{order}");
    (pen, fin)
}

fn is_fin(header: &TcpHeader) -> bool {
    header.flags.contains(FIN)
}

/// The client's DATA_FIN comes once more, and so does the answer.
fn late_data_fin(pen: &mut Pen, seq: u32) {
    pen.end(seq, ACK, true, true);
    let answers = pen.headers();
    let acked = answers.iter().filter(|answer| pen.acks_data_fin(answer));
    assert_eq!((acked.count(), answers.len()), (1, 1), "{answers:?}");
}

// A client that never sends a FIN: ours leaves when the wait for it is over, and a RST when the client
// has had its time for an answer; neither before. Until then its DATA_FIN is acknowledged.
#[test]
fn a_client_that_never_sends_a_fin() {
    for (order, hold) in ORDERS {
        let (mut pen, mut fin) = ended(order, CLOSING);
        assert_eq!(fin, hold == AT_ONCE, "{order}");
        late_data_fin(&mut pen, NEXT);
        if !fin {
            fin = pen.after(hold).iter().any(is_fin);
        }
        assert!(fin, "{order}");
        pen.ack += 1;
        pen.end(NEXT, ACK, false, true);
        assert_eq!((pen.state(), pen.headers()), ("FIN-WAIT-2", vec![]));
        late_data_fin(&mut pen, NEXT);
        let end = pen.after(CLOSING.fin_timeout);
        assert!(end.len() == 1 && end[0].flags.contains(TcpFlags::RST));
        assert_eq!(pen.state(), "-", "{order}");
        let metrics = &pen.script.engine.metrics;
        let held = u64::from(hold != AT_ONCE);
        assert_eq!(
            (metrics.fin_hold_timeouts, metrics.give_up_timeouts),
            (held, 1)
        );
    }
}

// What is still under way then is of no use, and nothing waits for it.
#[test]
fn a_join_under_way_ends_with_the_streams() {
    let mut pen = Pen::closing(CLOSING);
    pen.join();
    assert_eq!(pen.headers().len(), 1, "its SYN/ACK");
    pen.end(NEXT, ACK, true, false);
    let is_reset = |header: &&TcpHeader| header.flags.contains(TcpFlags::RST);
    assert_eq!(pen.headers().iter().filter(is_reset).count(), 0);
    pen.end(NEXT, ACK, false, true);
    let answers = pen.headers();
    let resets: Vec<_> = answers.iter().filter(is_reset).collect();
    assert!(resets.len() == 1 && resets[0].dst_port == JOIN_PORT);
    assert_eq!(pen.app.record().closed, Some(CloseCause::Finished));
}

// A client that sends its FIN in time, at once or at the last moment, is answered and bears TIME-WAIT.
#[test]
fn a_client_that_sends_its_fin_in_time() {
    for (order, hold) in ORDERS.into_iter().filter(|(_, hold)| *hold != AT_ONCE) {
        for waited in [AT_ONCE, hold - MS] {
            let (mut pen, _) = ended(order, CLOSING);
            pen.script.wait(waited);
            assert_eq!(pen.state(), "ESTAB");
            pen.end(NEXT, ACK | FIN, false, true);
            assert!(pen.headers().iter().any(is_fin), "{order}");
            assert_eq!(pen.state(), "LAST-ACK");
            pen.ack += 1;
            pen.end(NEXT + 1, ACK, false, true);
            assert_eq!(pen.state(), "-", "{order}");
        }
    }
}

// One that sends its FIN late, when ours has waited for it in vain, is still waited for: just before that
// is over it is answered, and TIME-WAIT is ours.
#[test]
fn a_client_that_sends_its_fin_at_the_last_moment() {
    for (order, hold) in ORDERS {
        let (mut pen, fin) = ended(order, CLOSING);
        if !fin {
            pen.after(hold);
        }
        pen.ack += 1;
        pen.end(NEXT, ACK, false, true);
        // From when our FIN left.
        pen.script.wait(CLOSING.fin_timeout - MS);
        assert_eq!((pen.state(), pen.headers()), ("FIN-WAIT-2", vec![]));
        pen.end(NEXT, ACK | FIN, false, true);
        let answers = pen.headers();
        assert!(answers.len() == 1 && pen.acks_data_fin(&answers[0]));
        assert_eq!(pen.state(), "TIME-WAIT", "{order}");
        assert_eq!(pen.script.engine.metrics.give_up_timeouts, 0);
    }
}

// Switched off: the FIN leaves as soon as it may, and TIME-WAIT is ours. A DATA_FIN that comes as late as
// that is still acknowledged, and so is a FIN.
#[test]
fn without_the_wait_time_wait_is_ours() {
    let closing = Closing {
        passive: false,
        ..CLOSING
    };
    for (order, _) in ORDERS {
        let (mut pen, fin) = ended(order, closing);
        assert!(fin, "{order}");
        pen.ack += 1;
        pen.end(NEXT, ACK | FIN, false, true);
        assert_eq!(pen.headers().len(), 1);
        assert_eq!(pen.state(), "TIME-WAIT", "{order}");
        late_data_fin(&mut pen, NEXT + 1);
        pen.end(NEXT, ACK | FIN, false, true);
        let answers = pen.headers();
        assert!(answers.len() == 1 && pen.acks_data_fin(&answers[0]));
        pen.end(NEXT + 1, ACK, false, true);
        assert_eq!(pen.headers(), [], "in step, and with nothing to answer");
    }
}

/// What a client does at the end.
impl Pen {
    /// A connection that is open, of an app that ends its stream when the client has.
    pub fn closing(closing: Closing) -> Pen {
        let mut pen = Pen::configured(Behaviour::default(), |config| {
            config.services[0].closing = closing;
        });
        pen.script.wait(RTT);
        pen.third_ack();
        pen.end(NEXT, ACK, false, false);
        assert_eq!(pen.headers(), []);
        pen
    }

    /// A segment without text, with DATA_FIN or not; `acks`: it acknowledges the server's.
    fn end(&mut self, seq: u32, flags: TcpFlags, data_fin: bool, acks: bool) {
        let mut options = TcpOptions::default();
        options.mptcp.dss = Some(Dss {
            data_ack: Some(DsnWidth::Eight(self.server_dsn(usize::from(acks)))),
            mapping: data_fin.then(|| DssMapping {
                dsn: DsnWidth::Eight(Pen::dsn(0)),
                subflow_seq: 0,
                len: 1,
                checksum: None,
            }),
            data_fin,
        });
        self.script.send(seq, self.ack, flags, options, &[]);
    }

    /// MP_FASTCLOSE with the server's key, or with one that is off by `off`.
    pub fn send_fastclose(&mut self, seq: u32, flags: TcpFlags, off: u64) {
        let mut options = TcpOptions::default();
        options.mptcp.fastclose = Some(MpFastclose {
            receiver_key: self.server_key.wrapping_add(off),
        });
        self.script.send(seq, self.ack, flags, options, &[]);
    }

    /// The app ends its stream.
    fn app_closes(&mut self) {
        {
            let mut log = self.app.log.borrow_mut();
            log.behaviour.close_first = true;
            log.wake = log.order.clone();
        }
        self.script.engine.poll_apps(self.script.now);
    }

    /// The app wants no more of it.
    pub fn app_aborts(&mut self) {
        {
            let mut log = self.app.log.borrow_mut();
            log.abort = log.order.clone();
        }
        self.script.engine.poll_apps(self.script.now);
    }

    /// What the server sends when `time` has passed, and not before.
    pub fn after(&mut self, time: Duration) -> Vec<TcpHeader> {
        self.script.wait(time.saturating_sub(MS));
        assert_eq!(self.headers(), [], "before its time");
        self.script.wait(MS);
        self.headers()
    }

    /// Headers of what the server sends now. None of it has text.
    pub fn headers(&mut self) -> Vec<TcpHeader> {
        let answers = self.script.answers();
        assert!(answers.iter().all(|(_, len)| *len == 0));
        answers.into_iter().map(|(header, _)| header).collect()
    }

    /// Whether this acknowledges the client's DATA_FIN.
    fn acks_data_fin(&self, header: &TcpHeader) -> bool {
        let all = Pen::dsn(1);
        let dss = header.options.mptcp.dss;
        match dss.and_then(|dss| dss.data_ack) {
            Some(DsnWidth::Eight(ack)) => ack == all,
            Some(DsnWidth::Four(low)) => low == all as u32,
            None => false,
        }
    }

    /// The client's key in MP_FASTCLOSE.
    pub fn is_fastclose(header: &TcpHeader) -> bool {
        let fastclose = header.options.mptcp.fastclose;
        fastclose == Some(MpFastclose { receiver_key: KEY })
    }

    /// Of the only subflow, or of what is left of it.
    pub fn state(&self) -> &'static str {
        let report = self.script.engine.report(self.script.now, 1);
        match report.conns.first().and_then(|c| c.subflows.first()) {
            Some(subflow) => subflow.state,
            None if report.time_wait == 1 => "TIME-WAIT",
            None => "-",
        }
    }
}
