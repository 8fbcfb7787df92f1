//! TCP of one subflow: round-trip time, congestion control, path MTU, the send side with its
//! retransmissions and the receive side with its reassembly. Nothing here knows of data sequence
//! numbers but as opaque marks on what was sent.

pub mod congestion;
pub mod ecn;
pub mod fast_open;
pub mod offer;
pub mod path_mtu;
pub mod receiver;
pub mod rtt;
pub mod sender;
pub mod timestamp;

/// RFC 9293 §3.3.2. TIME-WAIT is not here: it is a compact record of the engine, not a subflow.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum State {
    SynSent,
    SynReceived,
    /// RFC 8684 §3.2: ESTABLISHED for TCP, but no data leaves before the third ACK of our join is
    /// known to have arrived.
    PreEstablished,
    Established,
    FinWait1,
    FinWait2,
    CloseWait,
    Closing,
    LastAck,
}

impl State {
    /// The handshake is not over.
    pub fn is_opening(self) -> bool {
        matches!(
            self,
            State::SynSent | State::SynReceived | State::PreEstablished
        )
    }

    /// Our FIN has not been sent: new data may go out.
    pub fn may_send(self) -> bool {
        matches!(self, State::Established | State::CloseWait)
    }

    /// The peer's FIN has not come: new data may come in.
    pub fn may_receive(self) -> bool {
        matches!(self, State::Established | State::FinWait1 | State::FinWait2)
    }

    /// The peer's FIN has come, after everything before it.
    pub fn has_received_fin(self) -> bool {
        !self.may_receive() && !self.is_opening()
    }

    /// As `ss` prints it.
    pub fn name(self) -> &'static str {
        match self {
            State::SynSent => "SYN-SENT",
            State::SynReceived => "SYN-RECV",
            State::PreEstablished | State::Established => "ESTAB",
            State::FinWait1 => "FIN-WAIT-1",
            State::FinWait2 => "FIN-WAIT-2",
            State::CloseWait => "CLOSE-WAIT",
            State::Closing => "CLOSING",
            State::LastAck => "LAST-ACK",
        }
    }
}
