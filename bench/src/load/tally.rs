//! What one thread of the generator counted, and how threads are added up.

use std::io;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use mio::net::TcpStream;

use crate::socket;

macro_rules! error_kinds {
    ($($kind:ident = $name:literal, $meaning:literal;)*) => {
        /// Why an operation failed.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub(crate) enum ErrorKind { $($kind),* }

        impl ErrorKind {
            pub(crate) const ALL: &[Self] = &[$(Self::$kind),*];

            /// The key in the JSON report.
            pub(crate) fn name(self) -> &'static str {
                match self { $(Self::$kind => $name),* }
            }

            pub(crate) fn meaning(self) -> &'static str {
                match self { $(Self::$kind => $meaning),* }
            }
        }
    };
}

error_kinds! {
    ConnectRefused = "connect_refused", "connection refused";
    ConnectTimeout = "connect_timeout", "not connected within --timeout";
    Unreachable = "unreachable", "no route to the target";
    NoLocalPort = "no_local_port", "no local port left: add --source or --target addresses, use --rst-close, or lower net.ipv4.tcp_max_tw_buckets (EADDRNOTAVAIL)";
    NoDescriptor = "no_descriptor", "no file descriptor left: raise `ulimit -Hn`";
    Reset = "reset", "reset by the peer";
    Timeout = "timeout", "no answer within --timeout";
    ShortRead = "short_read", "closed by the peer before the answer was complete";
    ClosedIdle = "closed_idle", "closed by the peer between two operations";
    ExcessBytes = "excess_bytes", "more bytes than the answer has";
    MismatchedBytes = "mismatched_bytes", "bytes other than those sent";
    HttpStatus = "http_status", "an HTTP status other than 2xx";
    HttpMalformed = "http_malformed", "not an HTTP/1.1 response with a Content-Length as expected";
    Unsent = "unsent", "due by --rate but never sent";
    NotMptcp = "not_mptcp", "fell back to TCP in spite of --require-mptcp";
    Other = "other", "another error of the operating system";
}

/// An error with the sentence that describes this one occurrence.
pub(crate) type Failure = (ErrorKind, String);

pub(crate) fn connect_failure(e: &io::Error) -> Failure {
    use ErrorKind::*;
    let kind = match e.raw_os_error() {
        Some(libc::ECONNREFUSED) => ConnectRefused,
        Some(libc::ETIMEDOUT) => ConnectTimeout,
        Some(libc::EADDRNOTAVAIL | libc::EADDRINUSE) => NoLocalPort,
        Some(libc::EHOSTUNREACH | libc::ENETUNREACH) => Unreachable,
        Some(libc::EMFILE | libc::ENFILE) => NoDescriptor,
        Some(libc::ECONNRESET) => Reset,
        _ => Other,
    };
    (kind, format!("connect: {e}"))
}

pub(crate) fn exchange_failure(doing: &str, e: &io::Error) -> Failure {
    use ErrorKind::*;
    let kind = match e.raw_os_error() {
        Some(libc::ECONNRESET | libc::EPIPE | libc::ECONNABORTED) => Reset,
        Some(libc::ETIMEDOUT) => Timeout,
        _ => Other,
    };
    (kind, format!("{doing}: {e}"))
}

/// Counters that the progress line reads while a thread runs; one writer each.
#[derive(Debug, Default)]
#[repr(align(128))] // no two threads write to one cache line
pub(crate) struct Live {
    pub(crate) operations: AtomicU64,
    pub(crate) errors: AtomicU64,
    pub(crate) bytes_sent: AtomicU64,
    pub(crate) bytes_received: AtomicU64,
    pub(crate) connections: AtomicU64,
}

/// The results of a thread, or of all threads after [`Tally::merge`].
pub(crate) struct Tally {
    /// Nanoseconds per successful operation.
    pub(crate) latency: Histogram<u64>,
    /// Nanoseconds from connect() to an established connection.
    pub(crate) connect: Histogram<u64>,
    pub(crate) errors: Vec<u64>,
    pub(crate) first_errors: Vec<Option<String>>,
    pub(crate) bytes_sent: u64,
    pub(crate) bytes_received: u64,
    /// Connections that were really MPTCP when they were closed, and those that were not.
    pub(crate) mptcp: u64,
    pub(crate) not_mptcp: u64,
    pub(crate) subflows_max: u32,
    pub(crate) last_completion: Option<Instant>,
}

impl Tally {
    pub(crate) fn new() -> Self {
        const LONGEST_NS: u64 = 3_600_000_000_000;
        let histogram = || {
            // Fails only for bounds and digits that make no sense.
            Histogram::new_with_bounds(1, LONGEST_NS, 3).expect("constant bounds are valid")
        };
        Self {
            latency: histogram(),
            connect: histogram(),
            errors: vec![0; ErrorKind::ALL.len()],
            first_errors: vec![None; ErrorKind::ALL.len()],
            bytes_sent: 0,
            bytes_received: 0,
            mptcp: 0,
            not_mptcp: 0,
            subflows_max: 0,
            last_completion: None,
        }
    }

    pub(crate) fn completed(&mut self, live: &Live, now: Instant, took: Duration) {
        self.latency.saturating_record(took.as_nanos() as u64);
        self.last_completion = Some(now);
        live.operations.store(self.latency.len(), Relaxed);
        live.bytes_sent.store(self.bytes_sent, Relaxed);
        live.bytes_received.store(self.bytes_received, Relaxed);
    }

    pub(crate) fn connected(&mut self, live: &Live, took: Duration) {
        self.connect.saturating_record(took.as_nanos() as u64);
        live.connections.store(self.connect.len(), Relaxed);
    }

    pub(crate) fn failed(&mut self, live: &Live, (kind, what): Failure) {
        self.failed_times(live, kind, 1, what);
    }

    pub(crate) fn failed_times(&mut self, live: &Live, kind: ErrorKind, n: u64, what: String) {
        if n > 0 {
            self.errors[kind as usize] += n;
            self.first_errors[kind as usize].get_or_insert(what);
            live.errors.store(self.errors_total(), Relaxed);
        }
    }

    pub(crate) fn errors_total(&self) -> u64 {
        self.errors.iter().sum()
    }

    /// Looks at an established connection before it is closed; `false` if it is plain TCP.
    pub(crate) fn closing(&mut self, stream: &TcpStream) -> bool {
        match socket::subflows(stream) {
            Some(n) => {
                self.mptcp += 1;
                self.subflows_max = self.subflows_max.max(n);
                true
            }
            None => {
                self.not_mptcp += 1;
                false
            }
        }
    }

    pub(crate) fn merge(&mut self, other: Self) {
        // All histograms have the same bounds, so that adding them cannot fail.
        self.latency.add(&other.latency).expect("equal bounds");
        self.connect.add(&other.connect).expect("equal bounds");
        for (i, n) in other.errors.into_iter().enumerate() {
            self.errors[i] += n;
        }
        for (i, first) in other.first_errors.into_iter().enumerate() {
            if self.first_errors[i].is_none() {
                self.first_errors[i] = first;
            }
        }
        self.bytes_sent += other.bytes_sent;
        self.bytes_received += other.bytes_received;
        self.mptcp += other.mptcp;
        self.not_mptcp += other.not_mptcp;
        self.subflows_max = self.subflows_max.max(other.subflows_max);
        self.last_completion = self.last_completion.max(other.last_completion);
    }
}
