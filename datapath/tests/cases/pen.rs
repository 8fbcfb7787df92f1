//! A client of Multipath TCP made by hand.

use super::script::{ACK, CLIENT, FIN, SERVER, SYN, Script};
use crate::model::apps::{Behaviour, TestApp};
use crate::model::{dss_checksum, join_hmac, token_and_idsn};
use mpx_datapath::engine::{EngineConfig, FallbackReport, Patience};
use mpx_datapath::seq::TcpSeq;
use mpx_datapath::wire::mptcp::{
    CapableContent, DsnWidth, Dss, DssMapping, MpCapable, MpFail, MpJoin,
};
use mpx_datapath::wire::tcp::{TcpFlags, TcpHeader, TcpOptions};
use std::net::SocketAddr;

/// A client by hand of a service that asks for checksums: what it sends is as the test has it.
pub struct Pen {
    pub script: Script,
    pub app: TestApp,
    pub server_key: u64,
    pub ack: TcpSeq,
    pub data_ack: u64,
    /// Where the last join of the server's comes from.
    pub joins_from: SocketAddr,
}

pub const KEY: u64 = 0x0102_0304_0506_0708;
pub const ISS: u32 = 0xffff_ff00;
const NONCE: u32 = 0x1122_3344;
pub const JOIN_PORT: u16 = 5001;

pub fn capable(content: CapableContent) -> MpCapable {
    MpCapable {
        version: 1,
        flags: MpCapable::FLAG_SHA256,
        content,
    }
}

impl Pen {
    pub fn opened(checksum: bool, behaviour: Behaviour) -> Pen {
        let mut pen = Pen::half_open(checksum, behaviour);
        pen.third_ack();
        pen
    }

    pub fn third_ack(&mut self) {
        let mut options = TcpOptions::default();
        options.mptcp.capable = Some(capable(CapableContent::Ack {
            sender_key: KEY,
            receiver_key: self.server_key,
        }));
        self.script.send(ISS + 1, self.ack, ACK, options, &[]);
    }

    /// The SYN/ACK has come.
    pub fn half_open(checksum: bool, behaviour: Behaviour) -> Pen {
        Pen::configured(behaviour, |config| config.services[0].checksum = checksum)
    }

    /// The same at an engine of the caller's configuration.
    pub fn configured(behaviour: Behaviour, change: impl FnOnce(&mut EngineConfig)) -> Pen {
        Pen::asking(behaviour, SYN, 0, change)
    }

    /// The same with these flags of the SYN, and more of its MP_CAPABLE.
    pub fn asking(
        behaviour: Behaviour,
        syn: TcpFlags,
        more_flags: u8,
        change: impl FnOnce(&mut EngineConfig),
    ) -> Pen {
        let app = TestApp::new(behaviour);
        let pen = Pen {
            script: Script::configured(Box::new(app.clone()), Patience::default(), change),
            app,
            server_key: 0,
            ack: TcpSeq(0),
            data_ack: 0,
            joins_from: SERVER,
        };
        pen.connected(syn, more_flags)
    }

    /// The same engine, and a connection from where the script's client is now.
    pub fn connected(self, syn: TcpFlags, more_flags: u8) -> Pen {
        let mut pen = self;
        let mut options = TcpOptions::default();
        let mut offer = capable(CapableContent::Syn);
        offer.flags |= more_flags;
        options.mptcp.capable = Some(offer);
        pen.script.send(ISS, TcpSeq(0), syn, options, &[]);
        let (syn_ack, _) = pen.answer();
        let Some(CapableContent::SynAck { sender_key }) =
            syn_ack.options.mptcp.capable.map(|c| c.content)
        else {
            panic!("MP_CAPABLE is answered: {syn_ack:?}")
        };
        (pen.server_key, pen.ack) = (sender_key, syn_ack.seq + 1);
        pen.data_ack = token_and_idsn(sender_key).1.wrapping_add(1);
        pen
    }

    /// A SYN that joins, from another port.
    pub fn join(&mut self) {
        let mut options = TcpOptions::default();
        options.mptcp.join = Some(MpJoin::Syn {
            backup: false,
            address_id: 1,
            token: token_and_idsn(self.server_key).0,
            nonce: NONCE,
        });
        self.script.client.set_port(JOIN_PORT);
        self.script.send(ISS, TcpSeq(0), SYN, options, &[]);
        self.script.client.set_port(CLIENT.port());
    }

    /// The third ACK of a join whose SYN/ACK was `syn_ack`, with its option or without.
    pub fn join_ack(&mut self, syn_ack: &TcpHeader, with_option: bool) {
        let Some(MpJoin::SynAck { nonce, .. }) = syn_ack.options.mptcp.join else {
            panic!("MP_JOIN is answered: {syn_ack:?}")
        };
        let hmac = join_hmac(KEY, self.server_key, NONCE, nonce);
        let mut options = TcpOptions::default();
        options.mptcp.join = with_option.then(|| MpJoin::Ack {
            hmac: std::array::from_fn(|i| hmac[i]),
        });
        self.script.client.set_port(JOIN_PORT);
        self.script
            .send(ISS + 1, syn_ack.seq + 1, ACK, options, &[]);
        self.script.client.set_port(CLIENT.port());
    }

    /// Number of octet `at` of our stream.
    pub fn dsn(at: usize) -> u64 {
        token_and_idsn(KEY).1.wrapping_add(1 + at as u64)
    }

    /// Number of octet `at` of the server's stream.
    pub fn server_dsn(&self, at: usize) -> u64 {
        token_and_idsn(self.server_key)
            .1
            .wrapping_add(1 + at as u64)
    }

    /// DSS of `text` at octet `at` of the subflow and `offset` of the stream; its checksum is that of
    /// `summed`.
    pub fn mapping(&self, at: usize, offset: usize, summed: &[u8]) -> TcpOptions {
        let (dsn, len) = (Pen::dsn(offset), summed.len() as u16);
        let mut options = self.data_ack();
        if let Some(dss) = &mut options.mptcp.dss {
            dss.mapping = Some(DssMapping {
                dsn: DsnWidth::Eight(dsn),
                subflow_seq: 1 + at as u32,
                len,
                checksum: Some(dss_checksum(dsn, 1 + at as u32, len, summed)),
            });
        }
        options
    }

    pub fn infinite(&self, at: usize, offset: usize) -> TcpOptions {
        let mut options = TcpOptions::default();
        options.mptcp.dss = Some(Dss {
            mapping: Some(DssMapping {
                dsn: DsnWidth::Eight(Pen::dsn(offset)),
                subflow_seq: 1 + at as u32,
                len: 0,
                checksum: Some(0),
            }),
            ..Dss::default()
        });
        options
    }

    pub fn data_ack(&self) -> TcpOptions {
        let mut options = TcpOptions::default();
        options.mptcp.dss = Some(Dss {
            data_ack: Some(DsnWidth::Eight(self.data_ack)),
            ..Dss::default()
        });
        options
    }

    pub fn fail(&self, dsn: u64) -> TcpOptions {
        let mut options = self.data_ack();
        options.mptcp.fail = Some(MpFail { dsn });
        options
    }

    /// `text` at octet `at` of the subflow.
    pub fn send(&mut self, at: usize, options: TcpOptions, text: &[u8]) {
        let seq = ISS.wrapping_add(1 + at as u32);
        self.script.send(seq, self.ack, ACK, options, text);
    }

    pub fn fin(&mut self, at: usize) {
        let seq = ISS.wrapping_add(1 + at as u32);
        self.script
            .send(seq, self.ack, ACK | FIN, TcpOptions::default(), &[]);
    }

    /// The one segment that the server sends now.
    pub fn answer(&mut self) -> (TcpHeader, usize) {
        let answers = self.script.answers();
        let [answer] = answers[..] else {
            panic!("one segment, not {answers:?}")
        };
        answer
    }

    pub fn mode(&self) -> &'static str {
        let report = self.script.engine.report(self.script.now, 1);
        report.conns.first().map_or("-", |c| c.mode)
    }

    pub fn fallbacks(&self) -> Vec<FallbackReport> {
        self.script.engine.report(self.script.now, 0).fallbacks
    }
}
