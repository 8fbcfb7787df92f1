//! The memory of one worker: what its connections hold, and what they may.
//!
//! Counted is the capacity of every buffer and of what is noted of segments in flight and of mappings
//! announced, used or not, as it is between two events; for the moment of a copy what grows holds its
//! former memory as well. Each connection is charged for a reserve from its first SYN on, held or not:
//! within it text in order is taken, written and sent whatever the others hold, so that none of them
//! waits for another. Tables, timers and sets of ranges have limits of their own and are not counted.
//!
//! Above three quarters of the limit there is pressure, down to a half: new connections, and subflows of
//! those that have one, are refused, no window and no send buffer grows, and none offers more than the connection's share.
//! At the limit nothing grows beyond the reserves: what does not fit is not acknowledged and dropped.

use crate::mptcp::Connection;

/// Reserve of a connection for text received: one piece to stage it and one to keep it.
pub const RECEIVE_RESERVE_BYTES: usize = 8192;
/// And for text to be sent.
pub const SEND_RESERVE_BYTES: usize = 4096;

/// No share is less, octets each way.
const SHARE_MIN_BYTES: usize = 4096;

/// The account of a worker.
#[derive(Debug)]
pub struct Memory {
    limit_bytes: usize,
    used_bytes: usize,
    connections: usize,
    pressure: bool,
}

/// What a connection may do until it is charged again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Allowance {
    /// By so many octets its buffers may grow.
    pub spare_bytes: usize,
    /// What each of its directions may hold: its share under pressure, and else no bound.
    pub share_bytes: usize,
}

impl Allowance {
    pub const UNLIMITED: Allowance = Allowance {
        spare_bytes: usize::MAX,
        share_bytes: usize::MAX,
    };

    pub fn is_pressed(&self) -> bool {
        self.share_bytes != usize::MAX
    }

    /// Whether what holds `held` octets of memory may grow by `growth`. Its first piece is charged for from
    /// the beginning.
    pub fn grants_beyond_first(&self, held: usize, growth: usize) -> bool {
        held == 0 || growth <= self.spare_bytes
    }

    /// The same, and takes them out of what is spare.
    pub fn take_beyond_first(&mut self, held: usize, growth: usize) -> bool {
        held == 0 || self.take(growth)
    }

    /// Takes `bytes` out of what is spare, if it has them.
    pub fn take(&mut self, bytes: usize) -> bool {
        let enough = bytes <= self.spare_bytes;
        if enough {
            self.spare_bytes -= bytes;
        }
        enough
    }
}

impl Memory {
    pub fn new(limit_bytes: usize) -> Memory {
        Memory {
            limit_bytes,
            used_bytes: 0,
            connections: 0,
            pressure: false,
        }
    }

    pub fn limit_bytes(&self) -> usize {
        self.limit_bytes
    }

    pub fn used_bytes(&self) -> usize {
        self.used_bytes
    }

    pub fn is_pressed(&self) -> bool {
        self.pressure
    }

    /// What a connection may hold each way under pressure: all of them together stay below where
    /// pressure begins.
    pub fn share_bytes(&self) -> usize {
        let each = self.pressure_bytes() / self.connections.max(1);
        (each / 2).max(SHARE_MIN_BYTES)
    }

    /// Whether something new that holds `bytes` from the beginning may be taken on.
    pub fn admits(&self, bytes: usize) -> bool {
        !self.pressure && self.fits(bytes)
    }

    /// Whether there are `bytes` left below the limit.
    pub fn fits(&self, bytes: usize) -> bool {
        self.used_bytes.saturating_add(bytes) <= self.limit_bytes
    }

    pub fn allowance(&self) -> Allowance {
        Allowance {
            spare_bytes: self.limit_bytes.saturating_sub(self.used_bytes),
            share_bytes: if self.pressure {
                self.share_bytes()
            } else {
                usize::MAX
            },
        }
    }

    pub fn open(&mut self) {
        self.connections += 1;
    }

    /// A connection that was `charged` so much is gone.
    pub fn close(&mut self, charged: usize) {
        self.connections -= 1;
        self.charge(charged, 0);
    }

    /// A connection that was charged for `before` holds `now`. Returns whether that brings pressure.
    pub fn charge(&mut self, before: usize, now: usize) -> bool {
        self.used_bytes = self.used_bytes - before + now;
        debug_assert!(
            now <= before || self.used_bytes <= self.limit_bytes,
            "{} octets held, the limit is {}",
            self.used_bytes,
            self.limit_bytes
        );
        let was = self.pressure;
        self.pressure = match was {
            false => self.used_bytes > self.pressure_bytes(),
            true => self.used_bytes > self.limit_bytes / 2,
        };
        self.pressure && !was
    }

    /// Charges a connection for what it holds now. Returns whether that brings pressure.
    pub fn settle(&mut self, connection: &mut Connection) -> bool {
        let held = connection.memory_bytes();
        let before = std::mem::replace(&mut connection.charged_bytes, held);
        before != held && self.charge(before, held)
    }

    fn pressure_bytes(&self) -> usize {
        self.limit_bytes / 4 * 3
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pressure_begins_above_three_quarters_and_ends_at_a_half() {
        let mut memory = Memory::new(1000);
        memory.open();
        assert!(!memory.charge(0, 750) && !memory.is_pressed());
        assert!(memory.admits(250) && !memory.admits(251));
        assert!(memory.charge(750, 751) && memory.is_pressed());
        assert!(!memory.admits(0));
        assert!(!memory.charge(751, 501), "it is there already");
        assert!(memory.is_pressed() && memory.allowance().is_pressed());
        assert!(!memory.charge(501, 500) && !memory.is_pressed());
        assert!(memory.charge(500, 1000), "and may come back");
        assert_eq!(memory.allowance().spare_bytes, 0);
        memory.close(1000);
        assert_eq!((memory.used_bytes(), memory.is_pressed()), (0, false));
    }

    #[test]
    fn shares_add_up_to_where_pressure_begins() {
        let mut memory = Memory::new(40 << 20);
        for _ in 0..30 {
            memory.open();
        }
        assert_eq!(memory.share_bytes(), 1 << 19);
        for _ in 0..10_000 {
            memory.open();
        }
        assert_eq!(memory.share_bytes(), SHARE_MIN_BYTES);
    }

    #[test]
    fn an_allowance_is_spent_once() {
        let mut allowance = Memory::new(100).allowance();
        assert!(allowance.take(60) && !allowance.take(41) && allowance.take(40));
        assert!(!allowance.is_pressed() && !allowance.take(1));
    }
}
