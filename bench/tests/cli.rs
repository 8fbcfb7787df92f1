//! The program as scripts use it: exit status, JSON on stdout, files.

use std::io::{BufRead, BufReader};
use std::net::TcpListener;
use std::process::{Child, Command, Output, Stdio};

struct Server(Child);

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn bench(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_mpx-bench"))
        .args(args)
        .output()
        .unwrap()
}

fn echo_server(proto: &str) -> (Server, String) {
    let mut child = Command::new(env!("CARGO_BIN_EXE_mpx-bench"))
        .args(["echo-server", "--proto", proto, "--listen", "127.0.0.1:0"])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut line = String::new();
    let out = child.stdout.take().unwrap();
    BufReader::new(out).read_line(&mut line).unwrap();
    let addr = line.split_whitespace().nth(2).unwrap().to_owned();
    (Server(child), addr)
}

#[test]
fn a_load_writes_its_results_as_table_json_and_hgrm() {
    let (_server, addr) = echo_server("tcp");
    let dir = tempfile::tempdir().unwrap();
    let hgrm = dir.path().join("out.hgrm");
    let load = ["load", "rr", "--proto", "tcp", "-n", "1000", "--pin"];
    let files = ["--json", "-", "--hgrm", hgrm.to_str().unwrap()];
    let out = bench(&[&load[..], &["--target", &addr], &files].concat());
    let table = String::from_utf8(out.stderr).unwrap();
    assert_eq!(out.status.code(), Some(0), "{table}");
    assert!(table.contains("99.9 %"), "{table}");
    let json: serde_json::Value = serde_json::from_slice(&out.stdout).unwrap();
    assert_eq!(json["operations"], 1000);
    assert_eq!(json["latency"]["count"], 1000);
    assert_eq!(json["errors"], 0);
    assert_eq!(json["mptcp_fallback"], 0);
    let hgrm = std::fs::read_to_string(hgrm).unwrap();
    assert!(hgrm.contains("Total count    =         1000]"), "{hgrm}");
}

#[test]
fn errors_make_exit_status_1_and_are_in_the_output() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let addr = listener.local_addr().unwrap().to_string();
    std::thread::spawn(move || listener.incoming().for_each(drop));
    let out = bench(&[
        "load", "short", "--proto", "tcp", "--target", &addr, "-n", "20", "--quiet",
    ]);
    let table = String::from_utf8(out.stdout).unwrap();
    assert_eq!(out.status.code(), Some(1), "{table}");
    assert!(table.contains("  errors      20\n"), "{table}");
}

#[test]
fn options_that_do_not_fit_are_one_line_and_exit_status_1() {
    for (args, says) in [
        (&["up", "--rate", "5"][..], "--rate works with rr and short"),
        (&["rr", "--bytes", "5"], "--bytes is for up"),
        (&["rr", "--source", "192.0.2.1"], "--source 192.0.2.1"),
        (
            &["rr", "--source", "::1"],
            "no --source of the same address family",
        ),
        (&["rr", "--response-bytes", "65"], "--response-bytes 65"),
        (&["rr", "-c", "100000000"], "RLIMIT_NOFILE"),
        (&["rr", "--pin=99999"], "core 99999"),
        (&["rr", "--json", "/nonexistent/x"], "/nonexistent/x"),
        (&["rr", "--proto", "tcp", "--require-mptcp"], "contradicts"),
    ] {
        let common = ["load", "--target", "127.0.0.1:9", "--proto", "tcp"];
        let common = if args.contains(&"--proto") {
            &common[..3]
        } else {
            &common[..]
        };
        let out = bench(&[common, args].concat());
        let problem = String::from_utf8(out.stderr).unwrap();
        assert_eq!(out.status.code(), Some(1), "{args:?}: {problem}");
        assert_eq!(problem.lines().count(), 1, "{problem}");
        assert!(problem.contains(says), "{args:?}: {problem}");
    }
}
