//! Workers side by side: whose a segment is, and what the one that it comes to does with it.

use super::pen::{JOIN_PORT, Pen};
use super::script::{CLIENT, SERVER, Script};
use crate::model::apps::Behaviour;
use mpx_datapath::app::builtin::Discard;
use mpx_datapath::engine::Patience;
use mpx_datapath::seq::TcpSeq;
use mpx_datapath::steering::{FlowMap, MemoryFlowMap, Verdict};
use mpx_datapath::wire::tcp::{TcpFlags, TcpHeader, TcpOptions, Timestamps};
use mpx_ebpf::{Claim, FlowKey, FlowOwner, Numbers, flow_key_of, home};
use std::net::SocketAddr;

const HASH_KEY: [u64; 2] = [3, 4];
const ACK: TcpFlags = TcpFlags::ACK;

/// The first of three workers, numbers 6 to 8 of nine owners.
fn worker(lookups_per_second: u32, flows: &MemoryFlowMap) -> Script {
    let mut script = Script::configured(Box::new(Discard), Patience::default(), |config| {
        (config.owner, config.owners) = (6, 9);
        config.steering.workers = 3;
        config.steering.hash_key = HASH_KEY;
        config.steering.flow_lookups_per_second_max = lookups_per_second;
    });
    script.engine.set_flow_map(Box::new(flows.clone()));
    script
}

fn key(client: SocketAddr) -> FlowKey {
    flow_key_of(client, SERVER)
}

/// A client whose home is that worker.
fn client_of(worker: u32) -> SocketAddr {
    let ports = (1024..=u16::MAX).map(|port| SocketAddr::new(CLIENT.ip(), port));
    let mut at_home = ports.filter(|client| home(&key(*client), &HASH_KEY, 3) == worker);
    at_home.next().expect("there are thousands")
}

fn insert(flows: &MemoryFlowMap, client: SocketAddr, owner: FlowOwner) {
    let inserted = flows.clone().insert(&key(client), owner);
    assert_eq!(inserted, Ok(()));
}

fn echoing(tsecr: u32) -> TcpOptions {
    TcpOptions {
        timestamps: Some(Timestamps { tsval: 1, tsecr }),
        ..TcpOptions::default()
    }
}

/// The only one.
fn answer(script: &mut Script) -> Option<TcpHeader> {
    let mut answers = script.answers();
    assert!(answers.len() <= 1, "{answers:?}");
    answers.pop().map(|(header, _)| header)
}

/// The verdict on a segment, and whether it is answered with a RST.
fn judge(script: &mut Script, flags: TcpFlags, options: TcpOptions) -> (Verdict, bool) {
    let verdict = script.judge(100, TcpSeq(200), flags, options, &[]);
    let answer = answer(script);
    (
        verdict,
        answer.is_some_and(|a| a.flags.contains(TcpFlags::RST)),
    )
}

#[test]
fn only_the_worker_that_a_segment_names_answers() {
    let flows = MemoryFlowMap::new(8);
    let mut script = worker(1000, &flows);
    let plain = TcpOptions::default();

    // The timestamp decides, wherever the home is.
    script.client = client_of(1);
    assert_eq!(
        judge(&mut script, ACK, echoing(0x106)),
        (Verdict::Taken, true)
    );
    assert_eq!(
        judge(&mut script, ACK, echoing(0x108)),
        (Verdict::Forward(2), false)
    );
    // That of another server does not, nor does one of a segment that a stranger may have sent.
    assert_eq!(
        judge(&mut script, ACK, echoing(0x105)),
        (Verdict::Forward(1), false)
    );
    let rst = TcpFlags::RST | ACK;
    assert_eq!(
        judge(&mut script, rst, echoing(0x108)),
        (Verdict::Forward(1), false)
    );

    // Then the map, and then the home.
    assert_eq!(judge(&mut script, ACK, plain), (Verdict::Forward(1), false));
    insert(&flows, script.client, FlowOwner::proven(2));
    assert_eq!(judge(&mut script, ACK, plain), (Verdict::Forward(2), false));
    flows.clone().remove(&key(script.client));
    insert(&flows, script.client, FlowOwner::proven(0));
    assert_eq!(judge(&mut script, ACK, plain), (Verdict::Taken, true));
    flows.clone().remove(&key(script.client));
    script.client = client_of(0);
    assert_eq!(judge(&mut script, ACK, plain), (Verdict::Taken, true));
    assert_eq!(script.engine.metrics.mesh_forwards, 5);
    assert_eq!(script.engine.metrics.resets_sent, 3);
}

#[test]
fn what_was_passed_on_stays() {
    let mut script = worker(1000, &MemoryFlowMap::new(8));
    script.client = client_of(1);
    script.forwarded = true;
    let verdict = judge(&mut script, ACK, echoing(0x108));
    assert_eq!(verdict, (Verdict::Taken, true));
    assert_eq!(script.engine.metrics.wrong_worker, 1);
    // A SYN is nothing that anybody would know.
    let verdict = script.judge(100, TcpSeq(0), TcpFlags::SYN, TcpOptions::default(), &[]);
    assert_eq!(verdict, Verdict::Taken);
    let answer = answer(&mut script).expect("a SYN/ACK");
    assert_eq!(answer.flags, TcpFlags::SYN | ACK);
    assert_eq!(script.engine.metrics.wrong_worker, 1);
    assert_eq!(script.engine.metrics.mesh_received, 2);
}

/// A segment that may be of a flow of another worker must not draw a RST because nobody was asked.
#[test]
fn beyond_the_lookups_of_a_second_a_segment_is_dropped_and_a_syn_goes_home() {
    let flows = MemoryFlowMap::new(8);
    let mut script = worker(1, &flows);
    script.client = client_of(0);
    let plain = TcpOptions::default();
    assert_eq!(judge(&mut script, ACK, plain), (Verdict::Taken, true));
    assert_eq!(judge(&mut script, ACK, plain), (Verdict::Taken, false));
    assert_eq!(script.engine.metrics.flow_lookups_skipped, 1);
    let syn = script.judge(1, TcpSeq(0), TcpFlags::SYN, plain, &[]);
    assert_eq!((syn, answer(&mut script).is_some()), (Verdict::Taken, true));
    script.client = client_of(2);
    let syn = script.judge(1, TcpSeq(0), TcpFlags::SYN, plain, &[]);
    assert_eq!(syn, Verdict::Forward(2));
    assert_eq!(script.engine.metrics.flow_lookups, 1);
}

/// A client with a connection of worker 0, whose home its next subflow has not.
fn joining(flows: &MemoryFlowMap) -> (Pen, SocketAddr) {
    let joining = SocketAddr::new(CLIENT.ip(), JOIN_PORT);
    let mut keys = (0..).map(|number| [number, 0]);
    let homes = |hash_key: &[u64; 2]| [CLIENT, joining].map(|c| home(&key(c), hash_key, 2));
    let hash_key = keys.find(|hash_key| homes(hash_key) == [0, 1]);
    let mut pen = Pen::configured(Behaviour::default(), |config| {
        (config.owner, config.owners) = (0, 2);
        config.steering.workers = 2;
        config.steering.hash_key = hash_key.expect("one in four is such");
    });
    pen.script.engine.set_flow_map(Box::new(flows.clone()));
    pen.third_ack();
    (pen, joining)
}

// RFC 8684 §5: whoever has a token can forge the addresses of a join, and with that all segments of these
// addresses are not yet its.
#[test]
fn a_join_claims_the_segments_of_its_addresses_when_its_client_has_proved_itself() {
    let mut flows = MemoryFlowMap::new(8);
    let (mut pen, joining) = joining(&flows);
    pen.join();
    let (syn_ack, _) = pen.answer();
    let claimed = |flows: &mut MemoryFlowMap, numbers| {
        let entry = flows.lookup(&key(joining)).expect("the join is known");
        entry.of_segment(numbers)
    };
    let next = (syn_ack.seq + 1).0;
    // A host that sent no SYN resets what it gets with the number that this acknowledges.
    let resets = syn_ack.ack.0;
    let others = [
        Numbers::Ack(next - 1),
        Numbers::Ack(next + 1),
        Numbers::Reset(resets + 1),
        Numbers::Neither,
    ];
    for numbers in [Numbers::Ack(next), Numbers::Reset(resets)] {
        assert_eq!(claimed(&mut flows, numbers), Some(0));
    }
    assert_eq!(others.map(|n| claimed(&mut flows, n)), [None; 4]);
    pen.join_ack(&syn_ack, true);
    assert_eq!(others.map(|n| claimed(&mut flows, n)), [Some(0); 4]);
    assert_eq!(pen.script.engine.metrics.mp_join_ack_rx, 1);
}

/// Nor does it where frames come to any worker: what is not of the join goes to whoever has the addresses.
#[test]
fn a_join_that_is_pending_keeps_no_segment_from_another_worker() {
    let flows = MemoryFlowMap::new(8);
    let (mut pen, joining) = joining(&flows);
    pen.join();
    let (syn_ack, _) = pen.answer();
    pen.script.client = joining;
    let ack = syn_ack.seq + 1;
    let plain = TcpOptions::default();
    let (theirs, ours) = (Verdict::Forward(1), Verdict::Taken);
    for (ack, flags, options, verdict) in [
        (ack + 1, ACK, plain, theirs),
        (ack + 1, ACK, echoing(0x101), theirs),
        (TcpSeq(0), TcpFlags::RST, plain, theirs),
        (ack, ACK, echoing(0x100), ours),
    ] {
        let judged = pen.script.judge(77, ack, flags, options, b"theirs");
        assert_eq!(judged, verdict, "{flags:?} {ack:?}");
    }
    // Once and not twice.
    pen.script.forwarded = true;
    let judged = pen.script.judge(77, ack + 1, ACK, plain, b"theirs");
    assert_eq!(judged, Verdict::Taken);
}

#[test]
fn a_join_that_proves_nothing_leaves_no_claim() {
    let mut flows = MemoryFlowMap::new(8);
    let (mut pen, joining) = joining(&flows);
    pen.join();
    let (syn_ack, _) = pen.answer();
    pen.join_ack(&syn_ack, false);
    assert!(pen.answer().0.flags.contains(TcpFlags::RST));
    assert_eq!(flows.lookup(&key(joining)), None);
}

/// Another worker's flow of the same addresses is not to be taken from it by a join that may be forged.
#[test]
fn a_flow_that_is_proven_is_not_claimed_by_another_worker() {
    let theirs = FlowOwner::proven(1);
    let pending = FlowOwner {
        pending: Some(Claim {
            acknowledges: 7,
            resets: 7,
        }),
        ..theirs
    };
    for (entry, taken) in [(theirs, true), (pending, false)] {
        let mut flows = MemoryFlowMap::new(8);
        let (mut pen, joining) = joining(&flows);
        insert(&flows, joining, entry);
        pen.join();
        let (answer, _) = pen.answer();
        assert_eq!(answer.flags.contains(TcpFlags::RST), taken);
        assert_eq!(pen.script.engine.metrics.flow_map_taken, u64::from(taken));
        let entry = flows.lookup(&key(joining)).expect("it is there");
        assert_eq!(entry.worker == 1, taken);
    }
}

/// A crowd of SYNs does not use up the lookups, and a cookie that comes back needs none.
#[test]
fn what_comes_in_crowds_asks_nobody_and_a_cookie_opens_without_asking() {
    let mut script = Script::configured(Box::new(Discard), Patience::default(), |config| {
        config.steering.workers = 3;
        config.owners = 3;
        config.steering.hash_key = HASH_KEY;
        config.steering.flow_lookups_per_second_max = 1;
        config.syn_cookies_from = 0;
    });
    script.client = client_of(0);
    let plain = TcpOptions::default();
    for _ in 0..3 {
        script.judge(1, TcpSeq(0), TcpFlags::SYN, plain, &[]);
    }
    let (syn_ack, _) = script.answers().pop().expect("a SYN/ACK");
    assert_eq!(script.engine.metrics.flow_lookups, 0);
    // The one lookup of this second goes to a stranger.
    script.client = client_of(1);
    assert_eq!(judge(&mut script, ACK, plain).0, Verdict::Forward(1));
    script.client = client_of(0);
    let verdict = script.judge(2, syn_ack.seq + 1, ACK, plain, &[]);
    assert_eq!(verdict, Verdict::Taken);
    assert_eq!(script.engine.open_connections(), 1);
    assert_eq!(script.engine.metrics.flow_lookups_skipped, 0);
}
