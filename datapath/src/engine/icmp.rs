//! ICMP errors about what we sent. Anybody can forge one, so each has to prove that it was caused by a
//! segment in flight (RFC 5927 §4.1), and all of them together get little of a worker's time.

use super::Engine;
use super::flow::{FlowEntry, FlowKey};
use super::steer::Message;
use crate::port::IfaceId;
use crate::time::Instant;
use crate::wire::ParseError;
use crate::wire::icmp::PacketTooBig;
use crate::wire::neighbor::NeighborRequest;

/// Errors looked at in a second. A subflow needs one, or a few where several links are narrow.
pub(super) const ERRORS_PER_SECOND_MAX: u32 = 1000;

impl Engine {
    /// Takes in a frame without TCP in it.
    pub(super) fn on_other(&mut self, now: Instant, iface: IfaceId, frame: &[u8]) {
        match NeighborRequest::parse(frame) {
            Ok(request) => self.on_neighbor_request(now, iface, &request),
            Err(ParseError::NotTcp) => self.on_icmp(now, frame),
            Err(error) => self.count_drop(error),
        }
    }

    fn on_icmp(&mut self, now: Instant, frame: &[u8]) {
        match PacketTooBig::parse(frame) {
            Ok(error) => self.on_packet_too_big(now, &error),
            Err(error) => self.count_drop(error),
        }
    }

    fn on_packet_too_big(&mut self, now: Instant, error: &PacketTooBig) {
        self.metrics.icmp_in_msgs += 1;
        if !self.icmp_limit.take(now, &mut *self.entropy) {
            self.metrics.icmp_rate_limited += 1;
            return;
        }
        if !self.quench(now, error) {
            self.metrics.icmp_no_flow += 1;
            self.tell_all(Message::PacketTooBig(*error));
        }
    }

    /// Lets a subflow of this worker know; returns whether there is the one that is quoted.
    pub(super) fn quench(&mut self, now: Instant, error: &PacketTooBig) -> bool {
        let key = FlowKey::new(error.quoted.src, error.quoted.dst);
        let Some(FlowEntry {
            connection,
            subflow,
        }) = self.flows.lookup(&key)
        else {
            return false;
        };
        let index = connection as usize;
        let connection = &mut self.connections[index];
        connection.set_allowance(self.memory.allowance());
        connection.on_packet_too_big(subflow as usize, now, error, &mut self.metrics);
        self.settle(index, now, &[]);
        true
    }
}
