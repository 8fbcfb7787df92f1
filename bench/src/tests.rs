//! Loads against real servers on loopback, in this process.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use crate::load::{self, ErrorKind, Limit, Mode, Outcome, Plan};
use crate::report::Report;
use crate::server::{Server, ServerMode};
use crate::socket::Proto;

/// The kernel's server in threads of this process; stopped when dropped.
struct Running {
    addr: SocketAddr,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<std::io::Result<()>>>,
}

fn serve(proto: Proto, mode: ServerMode, threads: usize) -> Running {
    let listen = ["127.0.0.1:0".parse().unwrap()];
    let server = Server::bind(proto, &listen, mode, threads, None).unwrap();
    let addr = server.addrs()[0];
    let stop = Arc::new(AtomicBool::new(false));
    let flag = stop.clone();
    let thread = Some(thread::spawn(move || server.run(&flag)));
    Running { addr, stop, thread }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.stop.store(true, Relaxed);
        let result = self.thread.take().unwrap().join();
        if !thread::panicking() {
            result.unwrap().unwrap();
        }
    }
}

/// Serves each connection with blocking calls in a thread of its own.
fn serve_with(serve: impl Fn(std::net::TcpStream) + Send + Sync + 'static) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let addr = listener.local_addr().unwrap();
    let serve = Arc::new(serve);
    thread::spawn(move || {
        for stream in listener.incoming().map_while(Result::ok) {
            let serve = serve.clone();
            thread::spawn(move || serve(stream));
        }
    });
    addr
}

fn plan(mode: Mode, target: SocketAddr, limit: Limit) -> Plan {
    Plan {
        mode,
        proto: Proto::Tcp,
        routes: vec![(target, None)],
        connections: 8,
        threads: 2,
        pinning: None,
        request_bytes: 100,
        http_path: None,
        response_bytes: None,
        limit,
        rate_per_s: None,
        timeout: Duration::from_secs(10),
        reset_on_close: false,
        server_closes: false,
        require_mptcp: false,
        verify_source: false,
    }
}

fn run(plan: &Plan) -> (Report, Outcome) {
    let stop = Arc::new(AtomicBool::new(false));
    let outcome = load::run(plan, &stop, None).unwrap();
    (Report::new(plan, &outcome), outcome)
}

fn errors(report: &Report, kind: ErrorKind) -> u64 {
    report
        .errors_by_kind
        .get(kind.name())
        .map_or(0, |e| e.count)
}

/// Both protocols, or TCP alone where the kernel has no MPTCP (which the output says).
fn protos() -> Vec<Proto> {
    match Proto::Mptcp.check("127.0.0.1:0".parse().unwrap()) {
        Ok(()) => vec![Proto::Tcp, Proto::Mptcp],
        Err(e) => {
            println!("TCP only: {e}");
            vec![Proto::Tcp]
        }
    }
}

#[test]
fn exchanges_are_counted_exactly() {
    for proto in protos() {
        let server = serve(proto, ServerMode::Echo, 2);
        for (mode, count, request_bytes) in [
            (Mode::Rr, 5_003, 100),
            (Mode::Rr, 64, 300_000),
            (Mode::Short, 503, 100),
        ] {
            let plan = Plan {
                proto,
                request_bytes,
                require_mptcp: proto == Proto::Mptcp,
                ..plan(mode, server.addr, Limit::Count(count))
            };
            let (report, outcome) = run(&plan);
            assert_eq!(report.errors, 0, "{report}");
            assert_eq!(report.operations, count, "{report}");
            assert_eq!(outcome.tally.latency.len(), count);
            assert_eq!(report.bytes_sent, count * request_bytes as u64);
            assert_eq!(report.bytes_received, report.bytes_sent);
            let connections = if mode == Mode::Rr { 8 } else { count };
            assert_eq!(report.connections_established, connections, "{report}");
            let mptcp = if proto == Proto::Mptcp {
                connections
            } else {
                0
            };
            assert_eq!(report.connections_mptcp, mptcp, "{report}");
            assert_eq!(report.exit_status(), 0);
        }
    }
}

#[test]
fn bulk_moves_exactly_the_bytes_asked_for() {
    const EACH: u64 = 3_000_017;
    for proto in protos() {
        for (mode, server_mode) in [
            (Mode::Up, ServerMode::Discard),
            (Mode::Down, ServerMode::Source),
            (Mode::Both, ServerMode::Echo),
        ] {
            let server = serve(proto, server_mode, 1);
            let plan = Plan {
                proto,
                verify_source: true,
                ..plan(mode, server.addr, Limit::BytesEach(EACH))
            };
            let (report, _) = run(&plan);
            assert_eq!(report.exit_status(), 0, "{report}");
            assert_eq!(report.operations, 8, "{report}");
            let sent = if mode == Mode::Down { 0 } else { 8 * EACH };
            let received = if mode == Mode::Up { 0 } else { 8 * EACH };
            assert_eq!((report.bytes_sent, report.bytes_received), (sent, received));

            let limit = Limit::Duration(Duration::from_millis(200));
            let (report, _) = run(&Plan { limit, ..plan });
            assert_eq!(report.exit_status(), 0, "{report}");
            if mode == Mode::Both {
                assert_eq!(report.bytes_sent, report.bytes_received, "{report}");
            }
        }
    }
}

#[test]
fn a_connection_to_a_tcp_server_is_a_counted_fallback() {
    if protos().len() == 1 {
        return;
    }
    let server = serve(Proto::Tcp, ServerMode::Echo, 1);
    let mut plan = Plan {
        proto: Proto::Mptcp,
        ..plan(Mode::Rr, server.addr, Limit::Count(100))
    };
    let (report, _) = run(&plan);
    assert_eq!(
        (report.mptcp_fallback, report.exit_status()),
        (8, 0),
        "{report}"
    );
    plan.require_mptcp = true;
    let (report, _) = run(&plan);
    assert_eq!(errors(&report, ErrorKind::NotMptcp), 8, "{report}");
    assert_eq!(report.exit_status(), 1);
}

#[test]
fn a_server_that_closes_early_is_an_error_each_time() {
    let addr = serve_with(|mut stream| {
        let mut request = [0; 100];
        let _ = stream.read_exact(&mut request);
        let _ = stream.write_all(&request[..60]);
    });
    for mode in [Mode::Rr, Mode::Short] {
        let (report, _) = run(&plan(mode, addr, Limit::Count(40)));
        assert_eq!(report.operations, 0, "{report}");
        assert_eq!(errors(&report, ErrorKind::ShortRead), 40, "{report}");
        assert_eq!(report.errors, 40, "{report}");
        assert_eq!(report.exit_status(), 1);
    }
    let (report, _) = run(&plan(Mode::Both, addr, Limit::BytesEach(60_000_000)));
    assert_eq!((report.operations, report.errors), (0, 8), "{report}");
}

#[test]
fn wrong_and_surplus_bytes_are_found() {
    let addr = serve_with(|mut stream| {
        let mut request = [0; 100];
        while stream.read_exact(&mut request).is_ok() {
            request[77] ^= 1;
            let _ = stream.write_all(&request);
        }
    });
    let (report, _) = run(&plan(Mode::Rr, addr, Limit::Count(24)));
    assert_eq!(errors(&report, ErrorKind::MismatchedBytes), 24, "{report}");

    let addr = serve_with(|mut stream| {
        let mut request = [0; 100];
        while stream.read_exact(&mut request).is_ok() {
            let _ = stream.write_all(&[&request[..], b"?"].concat());
        }
    });
    let (report, _) = run(&plan(Mode::Short, addr, Limit::Count(24)));
    assert_eq!(errors(&report, ErrorKind::ExcessBytes), 24, "{report}");
}

#[test]
fn refused_connections_and_silent_servers_are_told_apart() {
    // A bound port without a listener refuses; nobody else can take it meanwhile.
    let bound = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    bound
        .bind(&"127.0.0.1:0".parse::<SocketAddr>().unwrap().into())
        .unwrap();
    let addr = bound.local_addr().unwrap().as_socket().unwrap();
    let (report, _) = run(&plan(Mode::Short, addr, Limit::Count(16)));
    assert_eq!(errors(&report, ErrorKind::ConnectRefused), 16, "{report}");
    let (report, _) = run(&plan(Mode::Rr, addr, Limit::Count(16)));
    assert_eq!(errors(&report, ErrorKind::ConnectRefused), 8, "{report}");
    assert_eq!(report.exit_status(), 1);

    let addr = serve_with(|mut stream| {
        let _ = stream.read_to_end(&mut Vec::new());
    });
    let timeout = Duration::from_millis(100);
    let limit = Limit::Count(16);
    let (report, _) = run(&Plan {
        timeout,
        ..plan(Mode::Rr, addr, limit)
    });
    assert_eq!(errors(&report, ErrorKind::Timeout), 16, "{report}");
}

#[test]
fn http_keep_alive_and_the_servers_close() {
    const PER_CONNECTION: usize = 5;
    let addr = serve_with(|mut stream| {
        let mut seen = Vec::new();
        let mut answered = 0;
        let mut buffer = [0; 4096];
        while let Ok(n @ 1..) = stream.read(&mut buffer) {
            seen.extend_from_slice(&buffer[..n]);
            if !seen.ends_with(b"\r\n\r\n") {
                continue;
            }
            assert!(seen.starts_with(b"GET /f HTTP/1.1\r\nHost: 127.0.0.1:"));
            seen.clear();
            answered += 1;
            let close = if answered == PER_CONNECTION {
                "Connection: close\r\n"
            } else {
                ""
            };
            let head = format!("HTTP/1.1 200 OK\r\nContent-Length: 3000\r\n{close}\r\n");
            let _ = stream.write_all(head.as_bytes());
            let _ = stream.write_all(&[b'x'; 3000]);
            if !close.is_empty() {
                return;
            }
        }
    });
    let mut plan = Plan {
        http_path: Some("/f".into()),
        response_bytes: Some(3000),
        ..plan(Mode::Rr, addr, Limit::Count(200))
    };
    let (report, _) = run(&plan);
    assert_eq!((report.operations, report.errors), (200, 0), "{report}");
    assert!(report.connections_established >= 200 / PER_CONNECTION as u64);
    plan.response_bytes = Some(2999);
    let (report, _) = run(&plan);
    assert_eq!(errors(&report, ErrorKind::HttpMalformed), 200, "{report}");
}

#[test]
fn the_server_closes_first_where_it_is_asked_to() {
    let addr = serve_with(|mut stream| {
        let mut request = [0; 4096];
        let n = stream.read(&mut request).unwrap_or(0);
        assert!(request[..n].ends_with(b"\r\nConnection: close\r\n\r\n"));
        let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\nx");
        // A client that closed first would not wait for this.
        stream
            .set_read_timeout(Some(Duration::from_millis(50)))
            .unwrap();
        let early = stream.read(&mut request);
        assert!(early.is_err_and(|e| e.kind() == std::io::ErrorKind::WouldBlock));
    });
    let plan = Plan {
        http_path: Some("/".into()),
        server_closes: true,
        ..plan(Mode::Short, addr, Limit::Count(32))
    };
    let (report, outcome) = run(&plan);
    assert_eq!((report.operations, report.errors), (32, 0), "{report}");
    assert!(outcome.elapsed >= Duration::from_millis(50));
}

/// One operation of a closed loop would hide a stall: the generator would wait with the server.
/// Measured from when they are due, all operations of the stall show it.
#[test]
fn a_stall_is_charged_with_every_operation_that_was_due_in_it() {
    const RATE_PER_S: f64 = 1_000.0;
    const STALL: Duration = Duration::from_millis(200);
    let addr = serve_with(|mut stream| {
        let mut request = [0; 100];
        let mut stall_at = Some(Instant::now() + Duration::from_millis(300));
        while stream.read_exact(&mut request).is_ok() {
            if stall_at.is_some_and(|at| Instant::now() >= at) {
                thread::sleep(STALL);
                stall_at = None;
            }
            let _ = stream.write_all(&request);
        }
    });
    let plan = Plan {
        connections: 1,
        threads: 1,
        rate_per_s: Some(RATE_PER_S),
        ..plan(Mode::Rr, addr, Limit::Duration(Duration::from_secs(1)))
    };
    let (report, outcome) = run(&plan);
    assert_eq!((report.operations, report.errors), (1_000, 0), "{report}");
    let latency = &outcome.tally.latency;
    // 100 operations were due in the first half of the stall, and waited for more than half of it.
    let stalled = latency.count_between(STALL.as_nanos() as u64 / 2, u64::MAX);
    assert!(
        stalled >= 95,
        "{stalled} operations show the stall\n{report}"
    );
    assert!(report.latency.p99_us >= 100_000.0, "{report}");
}

#[test]
fn what_a_rate_asks_for_and_a_dead_server_leaves_is_an_error() {
    let addr = serve_with(|mut stream| {
        let _ = stream.read_to_end(&mut Vec::new());
    });
    let plan = Plan {
        connections: 2,
        threads: 2,
        rate_per_s: Some(500.0),
        timeout: Duration::from_millis(200),
        ..plan(Mode::Rr, addr, Limit::Duration(Duration::from_millis(400)))
    };
    let (report, _) = run(&plan);
    assert_eq!(report.operations, 0, "{report}");
    let timeouts = errors(&report, ErrorKind::Timeout);
    let unsent = errors(&report, ErrorKind::Unsent);
    assert!(timeouts > 0 && unsent > 0, "{report}");
    assert_eq!(timeouts + unsent, 200, "{report}");
}
