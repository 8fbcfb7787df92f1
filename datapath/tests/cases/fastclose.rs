//! MP_FASTCLOSE in both forms and both directions (RFC 8684 §3.5).

use super::data_fin::{NEXT, RTO};
use super::pen::Pen;
use super::script::ACK;
use crate::model::apps::Behaviour;
use crate::model::client::ClientConfig;
use crate::model::sim::{Family, Sim, SimConfig};
use mpx_datapath::app::CloseCause;
use mpx_datapath::engine::Closing;
use mpx_datapath::wire::mptcp::MpTcprst;
use mpx_datapath::wire::tcp::TcpFlags;

const RST: TcpFlags = TcpFlags::RST;

/// The app has aborted, and the client has been told once.
fn aborted() -> Pen {
    let mut pen = Pen::closing(Closing::default());
    pen.app_aborts();
    assert_eq!(pen.app.record().closed, Some(CloseCause::Aborted));
    let answers = pen.headers();
    assert!(answers.len() == 1 && Pen::is_fastclose(&answers[0]));
    assert_eq!(answers[0].flags, ACK);
    pen
}

// Nobody answers: it is repeated after an RTO, three times in all with the time doubled, and then a RST
// says it once more. All five are counted, as the kernel counts them.
#[test]
fn an_abort_is_repeated_until_it_is_given_up() {
    let mut pen = aborted();
    for wait in [RTO, RTO * 2, RTO * 4] {
        let answers = pen.after(wait);
        assert!(answers.len() == 1 && Pen::is_fastclose(&answers[0]));
        assert_eq!(answers[0].flags, ACK);
        // Without it a client that has had none falls back.
        let dss = answers[0].options.mptcp.dss;
        assert!(dss.is_some_and(|dss| dss.data_ack.is_some()));
    }
    let answers = pen.after(RTO * 8);
    assert!(answers.len() == 1 && Pen::is_fastclose(&answers[0]));
    assert_eq!(answers[0].flags, RST | ACK);
    assert_eq!(pen.script.engine.connections(), 0);
    let metrics = &pen.script.engine.metrics;
    assert_eq!((metrics.mp_fastclose_tx, metrics.app_aborts), (5, 1));
}

// Its RST ends it; that it left behind text, which nobody takes in any more, makes no difference. What the
// client sent before it knew draws nothing, least of all a RST that says less.
#[test]
fn an_abort_is_answered() {
    for behind in [0, 10] {
        let mut pen = aborted();
        for seq in [NEXT, NEXT + 5, NEXT - 50] {
            let ack = pen.ack;
            pen.script.send(seq, ack, ACK, Default::default(), &[7; 5]);
        }
        let ack = pen.ack;
        pen.script.send(NEXT - 1, ack, RST, Default::default(), &[]);
        assert_eq!(pen.headers(), []);
        assert_eq!(pen.script.engine.connections(), 1);
        pen.script
            .send(NEXT + behind, ack, RST, Default::default(), &[]);
        assert_eq!(pen.headers(), []);
        assert_eq!(pen.script.engine.connections(), 0);
    }
}

// Both at once: the client's MP_FASTCLOSE on an ACK is answered with a RST, and one on a RST is the end.
#[test]
fn both_abort_at_once() {
    for flags in [ACK, RST | ACK] {
        let mut pen = aborted();
        pen.send_fastclose(NEXT, flags, 1);
        let expected = usize::from(flags == ACK);
        assert_eq!(pen.script.engine.connections(), expected, "another's key");
        if flags == ACK {
            pen.send_fastclose(NEXT, flags, 0);
            let answers = pen.headers();
            assert!(answers.len() == 1 && answers[0].flags == RST | ACK);
            assert_eq!(pen.script.engine.metrics.mp_fastclose_rx, 1);
        }
        assert_eq!(pen.script.engine.connections(), 0);
    }
}

// The RST that answers MP_FASTCLOSE says what Linux says there (RFC 8684 §3.6): no reason of its own.
#[test]
fn a_fastclose_of_the_client_is_answered() {
    let mut pen = Pen::closing(Closing::default());
    pen.send_fastclose(NEXT, ACK, 0);
    let answers = pen.headers();
    let reason = MpTcprst {
        transient: false,
        reason: 0,
    };
    assert!(answers.len() == 1 && answers[0].flags == RST | ACK);
    assert_eq!(answers[0].options.mptcp.tcprst, Some(reason));
    assert_eq!(pen.app.record().closed, Some(CloseCause::PeerAborted));
    assert_eq!(pen.script.engine.connections(), 0);
}

// RFC 8684 §3.5: with another key it is no MP_FASTCLOSE. On an ACK it says nothing; a RST is a RST all the
// same, of its own subflow and no other.
#[test]
fn a_fastclose_with_another_key_is_none() {
    let mut pen = Pen::closing(Closing::default());
    pen.send_fastclose(NEXT, ACK, 1);
    assert_eq!((pen.headers(), pen.state()), (vec![], "ESTAB"));

    let mut sim = two_subflows(Behaviour::default());
    sim.clients[0].fastclose_in_vain(1);
    sim.settle();
    assert_eq!(sim.app.record().closed, None);
    let report = sim.server.engine.report(sim.now, 1);
    assert_eq!(report.conns[0].subflows.len(), 1);
    assert_eq!(sim.server.count(|m| m.mp_fastclose_rx), 0);
    assert_eq!(sim.server.count(|m| m.resets_received), 1);
}

// One subflow has it on an ACK and waits; the other on its RST, so that none comes before the news.
#[test]
fn every_segment_of_an_abort_says_so() {
    let mut sim = two_subflows(Behaviour {
        abort_after_bytes: Some(1000),
        ..Behaviour::default()
    });
    sim.clients[0].send(&[7; 2000]);
    sim.run(|sim| sim.clients[0].closed());
    assert!(sim.clients[0].fastclosed);
    sim.settle();
    assert_eq!(sim.server.count(|m| m.mp_fastclose_tx), 2);
    assert_eq!(sim.server.count(|m| m.resets_sent), 1);
    assert_eq!(sim.server.engine.connections(), 0);
    sim.finish();
}

fn two_subflows(app: Behaviour) -> Sim {
    let mut sim = Sim::new(SimConfig::with(app));
    let c = sim.connect(ClientConfig::new(Family::V4.server(0)));
    sim.clients[c].send(b"hello");
    sim.run(|sim| sim.clients[c].acknowledged() == 5);
    let at = sim.join(c, 1);
    sim.run(|sim| sim.clients[c].subflows[at].open());
    sim
}
