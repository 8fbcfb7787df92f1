//! Explicit congestion notification of one subflow (RFC 3168 §6.1): what was agreed, what is to be
//! echoed and what is to be announced. When the window falls for an echo is the sender's matter.

use crate::wire::tcp::TcpFlags;

/// Codepoints of the traffic class (RFC 3168 §5).
pub const ECT_1: u8 = 0b01;
pub const ECT_0: u8 = 0b10;
pub const CE: u8 = 0b11;
pub const MASK: u8 = 0b11;

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Ecn {
    agreed: bool,
    /// Our SYN asks for it.
    asks: bool,
    /// A mark came, and no CWR since.
    echoes: bool,
    /// Our window fell, and the peer was not told.
    cwr_due: bool,
}

impl Ecn {
    /// For a SYN with these flags, where ECN is `allowed`.
    // RFC 3168 §6.1.1: an ECN-setup SYN has both flags.
    pub fn new(syn: TcpFlags, allowed: bool) -> Ecn {
        Ecn {
            agreed: allowed && syn.contains(TcpFlags::ECE | TcpFlags::CWR),
            ..Ecn::default()
        }
    }

    /// Of a handshake that is over.
    pub fn agreed(agreed: bool) -> Ecn {
        Ecn {
            agreed,
            ..Ecn::default()
        }
    }

    /// Before a SYN of ours, which asks for it or does not.
    pub fn asking(asks: bool) -> Ecn {
        Ecn {
            asks,
            ..Ecn::default()
        }
    }

    pub fn asks(&self) -> bool {
        self.asks
    }

    /// What comes of a SYN/ACK with these flags: after our SYN, or after a SYN of the peer that crossed
    /// it and may have agreed to ECN already.
    // RFC 3168 §6.1.1: ECE without CWR. With both, the peer reflects what it does not know.
    pub fn on_syn_ack(&self, syn_ack: TcpFlags) -> Ecn {
        let agrees = syn_ack.contains(TcpFlags::ECE) && !syn_ack.contains(TcpFlags::CWR);
        Ecn {
            agreed: (self.asks || self.agreed) && agrees,
            asks: self.asks,
            ..Ecn::default()
        }
    }

    pub fn is_agreed(&self) -> bool {
        self.agreed
    }

    /// Nobody answered: something on the way may not bear it (RFC 3168 §6.1.1.1).
    pub fn ask_no_more(&mut self) {
        self.asks = false;
    }

    /// Flags of our SYN beside that one.
    pub fn syn_flags(&self) -> TcpFlags {
        flag_if(self.asks, TcpFlags::ECE | TcpFlags::CWR)
    }

    /// The SYN came again. A peer that asks no more is not to see ECT (RFC 3168 §6.1.1.1).
    pub fn on_repeated_syn(&mut self, syn: TcpFlags) {
        *self = Ecn::new(syn, self.agreed);
    }

    /// Flags of our SYN/ACK beside those two.
    // RFC 3168 §6.1.1: ECE without CWR.
    pub fn syn_ack_flags(&self) -> TcpFlags {
        flag_if(self.agreed, TcpFlags::ECE)
    }

    /// An acceptable segment with text came. Marks on others mean nothing (§6.1.4, §6.1.6).
    // RFC 3168 §6.1.3: CWR ends the echo of what came before it, not of a mark on its own segment.
    pub fn on_text(&mut self, flags: TcpFlags, traffic_class: u8) {
        if flags.contains(TcpFlags::CWR) {
            self.echoes = false;
        }
        self.echoes |= self.agreed && traffic_class & MASK == CE;
    }

    /// Whether the peer reports a mark on what we sent.
    pub fn is_echo(&self, flags: TcpFlags) -> bool {
        self.agreed && flags.contains(TcpFlags::ECE)
    }

    /// The window fell, for whatever reason: the peer is told with the next new text (§6.1.2).
    pub fn on_window_fell(&mut self) {
        self.cwr_due = self.agreed;
    }

    /// Flags and codepoint for a segment that leaves now. `new_text`: it has text that leaves for the
    /// first time, which alone may be ECT and alone carries CWR (§6.1.2, §6.1.4 to §6.1.6).
    pub fn mark(&mut self, new_text: bool) -> (TcpFlags, u8) {
        let echo = flag_if(self.echoes, TcpFlags::ECE);
        if !new_text || !self.agreed {
            return (echo, 0);
        }
        let cwr = flag_if(std::mem::take(&mut self.cwr_due), TcpFlags::CWR);
        (echo | cwr, ECT_0)
    }
}

fn flag_if(condition: bool, flag: TcpFlags) -> TcpFlags {
    if condition { flag } else { TcpFlags::default() }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NONE: TcpFlags = TcpFlags(0);
    const SETUP: TcpFlags = TcpFlags(TcpFlags::ECE.0 | TcpFlags::CWR.0);

    #[test]
    fn only_a_syn_with_both_flags_asks_and_only_where_it_is_allowed() {
        for (syn, allowed) in [
            (SETUP, false),
            (TcpFlags::ECE, true),
            (TcpFlags::CWR, true),
            (NONE, true),
        ] {
            let mut ecn = Ecn::new(syn, allowed);
            ecn.on_text(NONE, CE);
            ecn.on_window_fell();
            assert_eq!(ecn.syn_ack_flags(), NONE);
            assert_eq!(ecn.mark(true), (NONE, 0));
            assert!(!ecn.is_echo(TcpFlags::ECE));
        }
        let mut ecn = Ecn::new(SETUP, true);
        assert_eq!(ecn.syn_ack_flags(), TcpFlags::ECE);
        ecn.on_repeated_syn(SETUP);
        assert!(ecn.is_agreed());
        // RFC 3168 §6.1.1.1, the example: neither side may set ECT then, whatever comes later.
        ecn.on_repeated_syn(NONE);
        ecn.on_repeated_syn(SETUP);
        assert_eq!((ecn.syn_ack_flags(), ecn.mark(true)), (NONE, (NONE, 0)));
    }

    // RFC 3168 §6.1.1, and §6.1.1.1 for a SYN that was not answered.
    #[test]
    fn a_syn_asks_once_and_a_syn_ack_that_reflects_it_agrees_to_nothing() {
        let mut ecn = Ecn::asking(true);
        assert_eq!(ecn.syn_flags(), SETUP);
        assert!(ecn.on_syn_ack(TcpFlags::ECE).is_agreed());
        assert!(!ecn.on_syn_ack(SETUP).is_agreed());
        assert!(!ecn.on_syn_ack(NONE).is_agreed());
        assert!(!Ecn::asking(false).on_syn_ack(TcpFlags::ECE).is_agreed());
        // After a SYN that crossed ours and asked as well.
        let crossed = Ecn::new(SETUP, true);
        assert!(crossed.on_syn_ack(TcpFlags::ECE).is_agreed());
        assert!(!crossed.on_syn_ack(SETUP).is_agreed());
        ecn.ask_no_more();
        assert_eq!(ecn.syn_flags(), NONE);
        assert!(!ecn.on_syn_ack(TcpFlags::ECE).is_agreed());
    }

    #[test]
    fn a_mark_is_echoed_on_everything_until_cwr_comes() {
        let mut ecn = Ecn::new(SETUP, true);
        ecn.on_text(NONE, ECT_0);
        assert_eq!(ecn.mark(false), (NONE, 0));
        ecn.on_text(NONE, 0xb8 | CE);
        ecn.on_text(NONE, ECT_0);
        for new_text in [false, true, false] {
            assert_eq!(ecn.mark(new_text).0, TcpFlags::ECE);
        }
        // A mark on the very segment that ends the echo begins another one.
        ecn.on_text(TcpFlags::CWR, CE);
        assert_eq!(ecn.mark(false), (TcpFlags::ECE, 0));
        ecn.on_text(TcpFlags::CWR, ECT_0);
        assert_eq!(ecn.mark(false), (NONE, 0));
    }

    #[test]
    fn new_text_alone_is_ect_and_the_first_of_it_says_that_the_window_fell() {
        let mut ecn = Ecn::new(SETUP, true);
        assert_eq!(ecn.mark(true), (NONE, ECT_0));
        ecn.on_window_fell();
        assert_eq!(ecn.mark(false), (NONE, 0));
        assert_eq!(ecn.mark(true), (TcpFlags::CWR, ECT_0));
        assert_eq!(ecn.mark(true), (NONE, ECT_0));
    }
}
