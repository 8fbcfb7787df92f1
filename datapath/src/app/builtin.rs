//! Apps that need nothing but the connection: `echo`, `discard`, `source`.

use super::App;
use crate::engine::Conn;

/// Sends back what it receives, and ends when the peer ends.
#[derive(Debug, Default)]
pub struct Echo;

impl App for Echo {
    fn on_readable(&mut self, conn: &mut Conn<'_>) {
        while conn.write_unread() > 0 {}
        if conn.peer_finished() {
            conn.close_write();
        }
    }

    fn on_writable(&mut self, conn: &mut Conn<'_>) {
        self.on_readable(conn);
    }
}

/// Reads everything, sends nothing.
#[derive(Debug, Default)]
pub struct Discard;

impl App for Discard {
    fn on_readable(&mut self, conn: &mut Conn<'_>) {
        loop {
            let n = conn.peek().len();
            if n == 0 {
                break;
            }
            conn.consume(n);
        }
        if conn.peer_finished() {
            conn.close_write();
        }
    }
}

/// Sends without end, until the peer ends its own stream: octet `i` of the stream is `i mod 251`.
#[derive(Debug, Default)]
pub struct Source {
    /// Stream position modulo 251 per connection would be state; whole periods need none.
    period: Vec<u8>,
}

impl Source {
    /// One write is a whole number of periods, so that each begins with octet 0.
    const PERIOD: usize = 251;
    const PERIODS: usize = 64;

    fn fill(&mut self, conn: &mut Conn<'_>) {
        if self.period.is_empty() {
            self.period = (0..=250u8)
                .cycle()
                .take(Source::PERIOD * Source::PERIODS)
                .collect();
        }
        loop {
            let room = conn.writable_bytes().min(self.period.len());
            let whole = room - room % Source::PERIOD;
            if whole == 0 {
                break;
            }
            conn.write(&self.period[..whole]);
        }
        conn.wait_writable();
    }
}

impl App for Source {
    fn on_open(&mut self, conn: &mut Conn<'_>) {
        self.fill(conn);
    }

    fn on_readable(&mut self, conn: &mut Conn<'_>) {
        Discard.on_readable(conn);
    }

    fn on_writable(&mut self, conn: &mut Conn<'_>) {
        self.fill(conn);
    }
}
