//! `xtask peer`: the odd clients and backends of the tests, on plain kernel sockets of the
//! standard library. `mptcpize run` turns the clients into MPTCP clients; servers run so are the
//! kernel's own MPTCP server, to run the same tests against.

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::Barrier;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use clap::{Subcommand, ValueEnum};
use sha2::{Digest, Sha256};

use crate::content::{Pattern, hex};

const CHUNK: usize = 64 * 1024;
/// Printed by a server when it can be connected to.
pub(crate) const READY: &str = "ready";

#[derive(Clone, Copy, Debug, ValueEnum)]
pub(crate) enum Role {
    /// Sends back what it gets.
    Echo,
    /// Reads everything.
    Discard,
    /// Sends without end.
    Source,
    /// Reads to the end, then answers with the SHA-256 and the count.
    Hash,
    /// Sends `--bytes`, ends its direction, then reads to the end and prints the count.
    Greet,
    /// Accepts and never reads.
    Stall,
    /// Passes both directions on to `--backend`.
    Proxy,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
pub(crate) enum Expect {
    /// The bytes that were sent.
    Echo,
    /// Their SHA-256 and count.
    Hash,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Peer {
    /// A server.
    Serve {
        role: Role,
        #[arg(long, required = true)]
        listen: Vec<SocketAddr>,
        #[arg(long)]
        backend: Option<SocketAddr>,
        #[arg(long, default_value_t = 0)]
        bytes: u64,
    },
    /// Connections that send, end their direction, and check the answer to its last byte.
    Exchange {
        #[arg(long)]
        to: SocketAddr,
        #[arg(long)]
        expect: Expect,
        /// Sizes are drawn from 1 to this, or are this when there is one connection.
        #[arg(long)]
        bytes: u64,
        #[arg(long, default_value_t = 1)]
        connections: u64,
        /// So many at a time; all of a round are open before the first byte is sent.
        #[arg(long, default_value_t = 1)]
        parallel: u64,
    },
    /// Reads exactly so many bytes of an endless stream and closes.
    Take {
        #[arg(long)]
        to: SocketAddr,
        #[arg(long)]
        bytes: u64,
    },
    /// Sends so many bytes and closes without reading.
    Give {
        #[arg(long)]
        to: SocketAddr,
        #[arg(long)]
        bytes: u64,
    },
    /// Waits for the other end to end its direction, then sends so many bytes and closes.
    Last {
        #[arg(long)]
        to: SocketAddr,
        /// How many bytes must have come before.
        #[arg(long)]
        after: u64,
        #[arg(long)]
        bytes: u64,
    },
    /// Connects, sends so many bytes without reading, and stays.
    Hold {
        #[arg(long)]
        to: SocketAddr,
        #[arg(long)]
        bytes: u64,
        /// A line to send first.
        #[arg(long)]
        request: Option<String>,
    },
}

pub(crate) fn run(peer: Peer) -> Result<(), String> {
    match peer {
        Peer::Serve {
            role,
            listen,
            backend,
            bytes,
        } => serve(role, &listen, backend, bytes),
        Peer::Exchange {
            to,
            expect,
            bytes,
            connections,
            parallel,
        } => exchange(to, expect, bytes, connections, parallel),
        Peer::Take { to, bytes } => take(to, bytes),
        Peer::Give { to, bytes } => {
            let mut stream = connect(to)?;
            send(&mut stream, Pattern::new(bytes), bytes).map_err(|e| failed("send", e))?;
            println!("sent {bytes} bytes");
            Ok(())
        }
        Peer::Last { to, after, bytes } => last(to, after, bytes),
        Peer::Hold { to, bytes, request } => hold(to, bytes, request),
    }
}

fn serve(
    role: Role,
    listen: &[SocketAddr],
    backend: Option<SocketAddr>,
    bytes: u64,
) -> Result<(), String> {
    let listeners: Result<Vec<_>, _> = listen
        .iter()
        .map(|address| {
            TcpListener::bind(address)
                .map_err(|error| format!("cannot listen on {address}: {error}"))
        })
        .collect();
    let listeners = listeners?;
    println!("{READY}");
    thread::scope(|scope| {
        for listener in &listeners {
            scope.spawn(move || {
                for stream in listener.incoming() {
                    let Ok(stream) = stream else { continue };
                    thread::spawn(move || {
                        if let Err(error) = serve_one(role, stream, backend, bytes) {
                            eprintln!("{error}");
                        }
                    });
                }
            });
        }
    });
    Ok(())
}

fn serve_one(
    role: Role,
    mut stream: TcpStream,
    backend: Option<SocketAddr>,
    bytes: u64,
) -> Result<(), String> {
    match role {
        Role::Echo => {
            let mut reader = stream.try_clone().map_err(|e| failed("clone", e))?;
            std::io::copy(&mut reader, &mut stream).map_err(|e| failed("echo", e))?;
        }
        Role::Discard => {
            std::io::copy(&mut stream, &mut std::io::sink()).map_err(|e| failed("read", e))?;
        }
        Role::Source => {
            // The reader's close ends it.
            let _ = send(&mut stream, Pattern::new(1), u64::MAX);
        }
        Role::Hash => {
            let (hash, count) = drain(&mut stream, Sha256::new()).map_err(|e| failed("read", e))?;
            writeln!(stream, "{} {count}", hex(hash)).map_err(|e| failed("answer", e))?;
        }
        Role::Greet => {
            send(&mut stream, Pattern::new(bytes), bytes).map_err(|e| failed("send", e))?;
            stream
                .shutdown(Shutdown::Write)
                .map_err(|e| failed("shut down", e))?;
            let (_, count) = drain(&mut stream, Sha256::new()).map_err(|e| failed("read", e))?;
            println!("received {count} bytes");
        }
        Role::Stall => loop {
            thread::park();
        },
        Role::Proxy => {
            let backend = backend.ok_or("a proxy takes --backend")?;
            let other = TcpStream::connect(backend).map_err(|e| failed("connect", e))?;
            thread::scope(|scope| {
                scope.spawn(|| pass(&stream, &other));
                pass(&other, &stream);
            });
        }
    }
    Ok(())
}

/// Copies one direction, its end included.
fn pass(mut from: &TcpStream, mut to: &TcpStream) {
    if std::io::copy(&mut from, &mut to).is_ok() {
        let _ = to.shutdown(Shutdown::Write);
    } else {
        let _ = to.shutdown(Shutdown::Both);
        let _ = from.shutdown(Shutdown::Both);
    }
}

fn exchange(
    to: SocketAddr,
    expect: Expect,
    bytes: u64,
    connections: u64,
    parallel: u64,
) -> Result<(), String> {
    let next = AtomicU64::new(0);
    let total = AtomicU64::new(0);
    let round = Barrier::new(usize::try_from(parallel).map_err(|e| e.to_string())?);
    let worker = || {
        let mut errors = Vec::new();
        // Every thread takes part in every round, so the barrier always fills.
        for _ in 0..connections.div_ceil(parallel) {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            let stream = (seed < connections).then(|| connect(to));
            round.wait();
            let size = match connections {
                1 => bytes,
                _ => 1 + Pattern::new(seed).next() % bytes,
            };
            let result = match stream {
                None => continue,
                Some(Err(error)) => Err(error),
                Some(Ok(stream)) => exchange_one(stream, expect, seed, size),
            };
            match result {
                Ok(()) => drop(total.fetch_add(size, Ordering::Relaxed)),
                Err(error) => errors.push(format!("connection {seed} of {size} bytes: {error}")),
            }
        }
        errors
    };
    let errors: Vec<String> = thread::scope(|scope| {
        let threads: Vec<_> = (0..parallel).map(|_| scope.spawn(worker)).collect();
        threads
            .into_iter()
            .flat_map(|thread| {
                thread
                    .join()
                    .unwrap_or_else(|_| vec!["a thread panicked".to_owned()])
            })
            .collect()
    });
    match errors.first() {
        None => {
            println!("{connections} connections, {} bytes", total.into_inner());
            Ok(())
        }
        Some(first) => Err(format!(
            "{} of {connections} connections failed, the first: {first}",
            errors.len()
        )),
    }
}

fn exchange_one(mut stream: TcpStream, expect: Expect, seed: u64, size: u64) -> Result<(), String> {
    let pattern = Pattern::new(seed);
    let mut writer = stream.try_clone().map_err(|e| failed("clone", e))?;
    thread::scope(|scope| {
        let sending = scope.spawn({
            let pattern = pattern.clone();
            move || {
                send(&mut writer, pattern, size)?;
                writer.shutdown(Shutdown::Write)
            }
        });
        let received = match expect {
            Expect::Echo => compare(&mut stream, pattern, size),
            Expect::Hash => compare_hash(&mut stream, pattern, size),
        };
        if received.is_err() {
            // Else the sender waits for a peer that has given up.
            let _ = stream.shutdown(Shutdown::Both);
        }
        match sending.join() {
            Ok(Ok(())) => received,
            Ok(Err(error)) => Err(received.err().unwrap_or_else(|| failed("send", error))),
            Err(_) => Err("the sending thread panicked".to_owned()),
        }
    })
}

/// The stream must be `size` bytes of the pattern and then end.
fn compare(stream: &mut TcpStream, mut pattern: Pattern, size: u64) -> Result<(), String> {
    let mut buffer = vec![0; CHUNK];
    let mut wanted = vec![0; CHUNK];
    let mut count = 0;
    loop {
        let length = read(stream, &mut buffer)
            .map_err(|error| format!("after {count} of {size} bytes: {}", failed("read", error)))?;
        if length == 0 {
            break;
        }
        pattern.fill(&mut wanted[..length]);
        if let Some(at) = (0..length).find(|&i| buffer[i] != wanted[i]) {
            return Err(format!("byte {} is wrong", count + at as u64));
        }
        count += length as u64;
    }
    if count == size {
        Ok(())
    } else {
        Err(format!("{count} bytes came back, {size} were sent"))
    }
}

fn compare_hash(stream: &mut TcpStream, mut pattern: Pattern, size: u64) -> Result<(), String> {
    let mut answer = String::new();
    stream
        .read_to_string(&mut answer)
        .map_err(|e| failed("read the answer", e))?;
    let mut hash = Sha256::new();
    let mut buffer = vec![0; CHUNK];
    let mut left = size;
    while left > 0 {
        let part = &mut buffer[..CHUNK.min(usize::try_from(left).unwrap_or(CHUNK))];
        pattern.fill(part);
        hash.update(&*part);
        left -= part.len() as u64;
    }
    let wanted = format!("{} {size}\n", hex(hash));
    if answer == wanted {
        Ok(())
    } else {
        Err(format!(
            "the backend got `{}`, sent was `{}`",
            answer.trim(),
            wanted.trim()
        ))
    }
}

fn take(to: SocketAddr, bytes: u64) -> Result<(), String> {
    let mut stream = connect(to)?;
    let mut buffer = vec![0; CHUNK];
    let mut left = bytes;
    while left > 0 {
        let part = CHUNK.min(usize::try_from(left).unwrap_or(CHUNK));
        match read(&mut stream, &mut buffer[..part]).map_err(|e| failed("read", e))? {
            0 => return Err(format!("the stream ended {left} bytes early")),
            length => left -= length as u64,
        }
    }
    println!("took {bytes} bytes");
    Ok(())
}

fn last(to: SocketAddr, after: u64, bytes: u64) -> Result<(), String> {
    let mut stream = connect(to)?;
    compare(&mut stream, Pattern::new(after), after)?;
    send(&mut stream, Pattern::new(bytes), bytes).map_err(|e| failed("send", e))?;
    println!("received {after} bytes, sent {bytes}");
    Ok(())
}

fn hold(to: SocketAddr, bytes: u64, request: Option<String>) -> Result<(), String> {
    let mut stream = connect(to)?;
    if let Some(request) = request {
        write!(stream, "{request}\r\n\r\n").map_err(|e| failed("send the request", e))?;
    }
    println!("{READY}");
    send(&mut stream, Pattern::new(bytes), bytes).map_err(|e| failed("send", e))?;
    println!("sent {bytes} bytes");
    loop {
        thread::park();
    }
}

fn connect(to: SocketAddr) -> Result<TcpStream, String> {
    let stream = TcpStream::connect(to).map_err(|e| failed("connect", e))?;
    for set in [TcpStream::set_read_timeout, TcpStream::set_write_timeout] {
        set(&stream, Some(Duration::from_secs(60))).map_err(|e| failed("set a timeout", e))?;
    }
    Ok(stream)
}

fn send(stream: &mut TcpStream, mut pattern: Pattern, bytes: u64) -> std::io::Result<()> {
    let mut buffer = vec![0; CHUNK];
    let mut left = bytes;
    while left > 0 {
        let part = &mut buffer[..CHUNK.min(usize::try_from(left).unwrap_or(CHUNK))];
        pattern.fill(part);
        stream.write_all(part)?;
        left -= part.len() as u64;
    }
    Ok(())
}

fn drain(stream: &mut TcpStream, mut hash: Sha256) -> std::io::Result<(Sha256, u64)> {
    let mut buffer = vec![0; CHUNK];
    let mut count = 0;
    loop {
        match read(stream, &mut buffer)? {
            0 => return Ok((hash, count)),
            length => {
                hash.update(&buffer[..length]);
                count += length as u64;
            }
        }
    }
}

fn read(stream: &mut TcpStream, buffer: &mut [u8]) -> std::io::Result<usize> {
    loop {
        match stream.read(buffer) {
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            result => return result,
        }
    }
}

fn failed(what: &str, error: std::io::Error) -> String {
    format!("cannot {what}: {error}")
}
