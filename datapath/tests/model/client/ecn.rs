//! Explicit congestion notification of one subflow (RFC 3168), and whether the server keeps to it.

use mpx_datapath::wire::frame::Segment;
use mpx_datapath::wire::tcp::TcpFlags;

const ECT_0: u8 = 0b10;
const CE: u8 = 0b11;

#[derive(Debug, Default)]
pub struct Ecn {
    agreed: bool,
    /// A mark came, and no CWR since.
    echoes: bool,
    cwr_due: bool,
    /// Echoes that acknowledge no more than this have been answered.
    answered_to: u64,
    /// The end of what has left so far.
    sent_to: u64,
    /// Segments with text that came, by what they bore.
    pub ect: u64,
    pub marks: u64,
    pub not_ect: u64,
    pub cwrs: u64,
    /// ECE and new that we answered.
    pub echoes_answered: u64,
}

impl Ecn {
    pub fn on_syn_ack(&mut self, asked: bool, flags: TcpFlags) {
        assert!(!flags.contains(TcpFlags::CWR), "CWR on a SYN/ACK");
        assert!(asked || !flags.contains(TcpFlags::ECE), "ECN, unasked for");
        self.agreed = flags.contains(TcpFlags::ECE);
    }

    /// The server's own SYN.
    pub fn on_syn(&mut self, allowed: bool, flags: TcpFlags) {
        let asks = flags.contains(TcpFlags::ECE | TcpFlags::CWR);
        assert!(asks || !flags.intersects(TcpFlags::ECE | TcpFlags::CWR));
        self.agreed = allowed && asks;
    }

    /// Flags of our answer to it.
    pub fn syn_ack_flags(&self) -> TcpFlags {
        match self.agreed {
            true => TcpFlags::ECE,
            false => TcpFlags::default(),
        }
    }

    /// Any segment but a SYN/ACK. `ack`: the offset that it acknowledges.
    pub fn on_segment(&mut self, segment: &Segment<'_>, ack: u64, snd_nxt: u64) {
        let flags = segment.tcp.flags;
        let codepoint = segment.traffic_class & 3;
        let text = !segment.payload.is_empty();
        let (ece, cwr) = (flags.contains(TcpFlags::ECE), flags.contains(TcpFlags::CWR));
        // RFC 3168 §6.1.4, §6.1.6: nothing but text is ECT, and that once it was agreed.
        assert!(codepoint == 0 || self.agreed && text, "ECT on {flags:?}");
        assert!(self.agreed || !ece && !cwr, "{flags:?} without ECN");
        if text {
            match codepoint {
                CE => self.marks += 1,
                ECT_0 => self.ect += 1,
                0 => self.not_ect += 1,
                _ => panic!("ECT(1)"),
            }
            // RFC 3168 §6.1.2: CWR is for new text, which is ECT.
            assert!(!cwr || codepoint != 0, "CWR on a retransmission");
            self.cwrs += u64::from(cwr);
            self.echoes = codepoint == CE || self.echoes && !cwr;
        } else {
            assert!(!cwr, "CWR without text");
        }
        if ece && ack > self.answered_to {
            (self.cwr_due, self.answered_to) = (true, snd_nxt);
            self.echoes_answered += 1;
        }
    }

    /// Flags and codepoint for a segment of `len` octets at offset `at`.
    pub fn mark(&mut self, at: u64, len: usize) -> (TcpFlags, u8) {
        let mut flags = TcpFlags::default();
        if self.echoes {
            flags = flags | TcpFlags::ECE;
        }
        let end = at + len as u64;
        if !self.agreed || len == 0 || at < self.sent_to {
            return (flags, 0);
        }
        self.sent_to = end;
        if std::mem::take(&mut self.cwr_due) {
            flags = flags | TcpFlags::CWR;
        }
        (flags, ECT_0)
    }
}
