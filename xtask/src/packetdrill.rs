//! `cargo xtask packetdrill`: the scripts of a public packetdrill collection against the engine.
//!
//! The tool and the scripts are somebody else's and stay where they are. The scripts describe Linux:
//! `xtask/packetdrill/expectations.txt` names those that must fail here, each with its reason.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::process::{Cmd, Output, on_path};
use crate::project;
use crate::reasons;
use crate::scratch::Scratch;
use crate::setup;
use crate::ui;

/// Time in a script is virtual; this is for one that hangs.
const SCRIPT_LIMIT: Duration = Duration::from_secs(20);
/// Where Linux acknowledges at once, early in a connection, the engine may take its 40 ms.
const TOLERANCE: &str = "--tolerance_usecs=50000";
/// Lines of the tool's output that are shown.
const SHOWN_LINES: usize = 6;
/// The cookies that the engine makes of the secret that it gets there; in the scripts are Linux's.
const COOKIE_IPV4: &str = "TFO_COOKIE=1dbf4f06ee75";
const COOKIE_IPV6: &str = "TFO_COOKIE=a5e3be5cae8d";
const LINUX_COOKIES: [&str; 2] = ["3021b9d889017eeb", "c1d1e9742a47a9bc"];
/// What the collections' own runners define.
const IPV4: &[&str] = &[
    "-D",
    COOKIE_IPV4,
    "-D",
    "CODE=host_unreachable",
    "-D",
    "CMSG_LEVEL_IP=SOL_IP",
    "-D",
    "CMSG_TYPE_RECVERR=IP_RECVERR",
];
const IPV6: &[&str] = &[
    "--ip_version=ipv6",
    "--mtu=1520",
    "--local_ip=fd3d:0a0b:17d6::1",
    "--gateway_ip=fd3d:0a0b:17d6:8888::1",
    "--remote_ip=fd3d:fa7b:d17d::1",
    "-D",
    COOKIE_IPV6,
    "-D",
    "CMSG_LEVEL_IP=SOL_IPV6",
    "-D",
    "CMSG_TYPE_RECVERR=IPV6_RECVERR",
];
/// What scripts call to prepare a kernel that is not under test here.
const WITHOUT_EFFECT: [&str; 3] = ["tc", "iptables", "ethtool"];
/// Where the engine looks, it is noted: which addresses are to be announced, and whether TCP Fast Open
/// is on, in the script's own network namespace.
const IP: &str = "echo \"$@\" >> \"$MPX_PACKETDRILL_ENDPOINTS\"";
const SYSCTL: &str = "for a; do case $a in net.ipv4.tcp_fastopen=*) \
    echo ${a#*=} > /proc/sys/net/ipv4/tcp_fastopen;; esac; done; exit 0";

/// With `ipv6` the scripts that are not for IPv4 only, over IPv6; else those that are not for IPv6 only.
pub(crate) fn run(path: &Path, filter: &str, ipv6: bool, show: bool) -> Result<(), String> {
    // The tool locks its memory, and gets a network namespace.
    setup::require_root("cargo xtask packetdrill")?;
    let tool = find_tool()?;
    let expectations = Expectations::read()?;
    let scripts = find_scripts(path, filter, ipv6)?;
    let bench = Bench::set_up(tool)?;
    let results = ui::step(&format!("{} scripts", scripts.len()), |progress| {
        scripts
            .iter()
            .map(|script| {
                progress(&script.display().to_string());
                bench.run(script, ipv6)
            })
            .collect::<Result<Vec<_>, _>>()
    })?;
    let mut passed = 0;
    let mut failed_as_expected = BTreeMap::<&str, usize>::new();
    let mut surprises = 0;
    for (script, result) in scripts.iter().zip(&results) {
        let expected = expectations.reason(script);
        let (word, tail) = match (result, expected) {
            (Verdict::Passed, None) => {
                passed += 1;
                continue;
            }
            (Verdict::Failed(tail), Some(reason)) => {
                let class = reason.split(':').next().unwrap_or(reason);
                *failed_as_expected.entry(class).or_default() += 1;
                if !show {
                    continue;
                }
                ("fails as expected", tail.as_str())
            }
            (Verdict::Failed(tail), None) => {
                surprises += 1;
                ("FAILED", tail.as_str())
            }
            (Verdict::Passed, Some(reason)) if reason.starts_with("either:") => {
                passed += 1;
                continue;
            }
            (Verdict::Passed, Some(_)) => {
                surprises += 1;
                ("PASSED, against its expectation", "")
            }
        };
        println!("{}: {word}", script.display());
        if let Some(reason) = expected {
            println!("    ({reason})");
        }
        for line in tail.lines() {
            println!("    {line}");
        }
    }
    println!("{passed} passed");
    for (class, count) in &failed_as_expected {
        println!("{count} failed as expected: {class}");
    }
    if surprises == 0 {
        return Ok(());
    }
    Err(format!(
        "{surprises} of {} scripts did not do what {EXPECTATIONS} says; mend the engine or that file",
        scripts.len()
    ))
}

fn find_tool() -> Result<PathBuf, String> {
    match std::env::var_os("PACKETDRILL").filter(|named| !named.is_empty()) {
        Some(named) => {
            let tool = std::path::absolute(&named).unwrap_or_else(|_| named.into());
            if tool.is_file() {
                return Ok(tool);
            }
            Err(format!(
                "$PACKETDRILL names `{}`, which is no file; name the tool's binary",
                tool.display()
            ))
        }
        None if on_path("packetdrill") => Ok("packetdrill".into()),
        None => Err(
            "packetdrill is not on PATH; build it from github.com/google/packetdrill \
             (for MPTCP scripts from github.com/multipath-tcp/packetdrill) and set PACKETDRILL to \
             the binary"
                .into(),
        ),
    }
}

/// All scripts below `path` for a passive opener, in order.
fn find_scripts(path: &Path, filter: &str, ipv6: bool) -> Result<Vec<PathBuf>, String> {
    let path = path
        .canonicalize()
        .map_err(|error| format!("cannot find `{}`: {error}", path.display()))?;
    let mut scripts = Vec::new();
    let mut ahead = vec![path.clone()];
    while let Some(at) = ahead.pop() {
        if at.is_dir() {
            let entries = fs::read_dir(&at)
                .map_err(|error| format!("cannot read `{}`: {error}", at.display()))?;
            ahead.extend(entries.flatten().map(|entry| entry.path()));
        } else if at.extension().is_some_and(|extension| extension == "pkt")
            && at.to_string_lossy().contains(filter)
            && !at
                .to_string_lossy()
                .ends_with(if ipv6 { "v4.pkt" } else { "v6.pkt" })
            && fs::read(&at).is_ok_and(|text| text.windows(7).any(|word| word == b"listen("))
        {
            scripts.push(at);
        }
    }
    scripts.sort();
    if scripts.is_empty() {
        return Err(format!(
            "no .pkt file with `listen(` below `{}`{}",
            path.display(),
            if filter.is_empty() {
                ""
            } else {
                " has the filter in its name"
            }
        ));
    }
    Ok(scripts)
}

enum Verdict {
    Passed,
    /// With the end of what the tool said.
    Failed(String),
}

/// What every script is run with.
struct Bench {
    tool: PathBuf,
    library: PathBuf,
    scratch: Scratch,
}

impl Bench {
    fn set_up(tool: PathBuf) -> Result<Bench, String> {
        let library = project::build_packetdrill_shim()?;
        let scratch = Scratch::make()?;
        let bin = scratch.join("bin");
        let stub = |name: &str, text: &str| {
            write_executable(&bin.join(name), &format!("#!/bin/sh\n{text}\n"))
        };
        fs::create_dir(&bin)
            .map_err(|error| format!("cannot make `{}`: {error}", bin.display()))?;
        for name in WITHOUT_EFFECT {
            stub(name, "exit 0")?;
        }
        stub("ip", IP)?;
        stub("sysctl", SYSCTL)?;
        stub("nstat", "cat \"$MPX_PACKETDRILL_COUNTERS\"")?;
        Ok(Bench {
            tool,
            library,
            scratch,
        })
    }

    fn run(&self, script: &Path, ipv6: bool) -> Result<Verdict, String> {
        let (Some(directory), Some(name)) = (script.parent(), script.file_name()) else {
            return Err(format!("`{}` is no script", script.display()));
        };
        let counters = self.scratch.join("counters.json");
        // No counter is there yet, and the last script's are not this one's.
        fs::write(&counters, "{\"kernel\":{}}\n")
            .map_err(|error| format!("cannot write `{}`: {error}", counters.display()))?;
        let endpoints = self.scratch.join("endpoints");
        fs::write(&endpoints, "")
            .map_err(|error| format!("cannot write `{}`: {error}", endpoints.display()))?;
        let path = std::env::var_os("PATH").unwrap_or_default();
        let bin = self.scratch.join("bin");
        let path = std::env::join_paths(std::iter::once(bin).chain(std::env::split_paths(&path)))
            .map_err(|error| format!("PATH cannot be completed: {error}"))?;
        let mut preload = std::ffi::OsString::from("LD_PRELOAD=");
        preload.push(&self.library);
        let mut load = std::ffi::OsString::from("--so_filename=");
        load.push(&self.library);
        let text = fs::read_to_string(script)
            .map_err(|error| format!("cannot read `{}`: {error}", script.display()))?;
        let copy = self.scratch.join(&name.to_string_lossy());
        fs::write(&copy, with_our_cookies(&without_push_of_bursts(&text)))
            .map_err(|error| format!("cannot write `{}`: {error}", copy.display()))?;
        // Some scripts write below /proc/sys: into a network namespace of their own.
        let process = Cmd::new("unshare")
            .args(["--net", "env"])
            .arg(preload)
            .arg(&self.tool)
            .arg(load)
            .arg(TOLERANCE)
            .args(if ipv6 { IPV6 } else { IPV4 })
            .arg(&copy)
            .env("PATH", path)
            .env("MPX_PACKETDRILL_COUNTERS", &counters)
            .env("MPX_PACKETDRILL_ENDPOINTS", &endpoints)
            .directory(directory)
            .spawn()?;
        let pid = process.pid();
        let before = leftovers(pid);
        let result = process.wait(SCRIPT_LIMIT);
        for path in leftovers(pid).difference(&before) {
            let _ = fs::remove_file(path);
        }
        Ok(match result {
            Ok(output) if output.status.success() => Verdict::Passed,
            Ok(output) => Verdict::Failed(tail(&output)),
            Err(error) => Verdict::Failed(error),
        })
    }
}

/// A script without the PSH that Linux puts on every packet of several segments (for GRO at the other
/// end), unless it carries the last octets written so far: those the engine pushes (RFC 9293 §3.9.1).
/// The tool compares such a packet with the segments that it was cut into, taken together.
fn without_push_of_bursts(script: &str) -> String {
    let mut mss = usize::MAX;
    let mut written = 0;
    let mut result = String::with_capacity(script.len());
    for line in script.split_inclusive('\n') {
        if let Some(offered) = peer_mss(line) {
            mss = offered;
        }
        if line.contains("accept(") {
            written = 0;
        }
        written += written_bytes(line).unwrap_or(0);
        match pushed(line) {
            Some((end, len)) if len > mss && end != written + 1 => {
                result.push_str(&line.replacen("> P.", "> .", 1));
            }
            _ => result.push_str(line),
        }
    }
    result
}

/// A script with the engine's cookies in the place of those that Linux makes of its default key.
fn with_our_cookies(script: &str) -> String {
    let ours = [COOKIE_IPV4, COOKIE_IPV6].map(|cookie| cookie.trim_start_matches("TFO_COOKIE="));
    let replace = |text: String, (linux, ours): (&str, &str)| text.replace(linux, ours);
    let pairs = LINUX_COOKIES.into_iter().zip(ours);
    let script = pairs.fold(script.to_owned(), replace);
    // They are two octets shorter, and the tool wants whole words of options.
    let lines = script.split_inclusive('\n').map(str::to_owned);
    let shortened = lines.map(|line| {
        let named = ours.iter().chain(&["TFO_COOKIE"]);
        named.fold(line, |line, cookie| {
            let cookie = format!("FO {cookie}");
            line.replace(&format!("{cookie}, nop, nop"), &cookie)
                .replace(&format!("{cookie},nop,nop"), &cookie)
                .replace(&format!("nop,nop,nop,{cookie}"), &format!("nop,{cookie}"))
        })
    });
    shortened.collect()
}

/// What the SYN that a line has the peer send offers.
fn peer_mss(line: &str) -> Option<usize> {
    let options = line.split_once(" < S")?.1.split_once("mss ")?.1;
    digits(options)
}

/// Octets that a line's call writes.
fn written_bytes(line: &str) -> Option<usize> {
    let (before, arguments) = line.split_once('(')?;
    let call = before.split_whitespace().last()?;
    if !["write", "writev", "send", "sendto", "sendmsg"].contains(&call) {
        return None;
    }
    digits(arguments.rsplit_once(") = ")?.1)
}

/// Where a segment that a line expects with PSH ends, and its length.
fn pushed(line: &str) -> Option<(usize, usize)> {
    let range = line.split_once("> P. ")?.1.split_once(':')?.1;
    Some((digits(range)?, digits(range.split_once('(')?.1)?))
}

fn digits(text: &str) -> Option<usize> {
    let end = text.find(|c: char| !c.is_ascii_digit());
    text[..end.unwrap_or(text.len())].parse().ok()
}

/// What a script that fails leaves in /tmp: how to undo its settings, and the checks that it made.
fn leftovers(pid: u32) -> BTreeSet<PathBuf> {
    let restore = format!("sysctl_restore_{pid}.sh");
    let entries = fs::read_dir("/tmp").into_iter().flatten().flatten();
    entries
        .filter(|entry| {
            let name = entry.file_name();
            let name = name.to_string_lossy();
            name == restore.as_str() || name.starts_with("code_")
        })
        .map(|entry| entry.path())
        .collect()
}

fn tail(output: &Output) -> String {
    let text = format!("{}\n{}", output.stdout, output.stderr);
    let lines: Vec<_> = text
        .lines()
        .filter(|line| !line.trim().is_empty())
        .collect();
    lines[lines.len().saturating_sub(SHOWN_LINES)..].join("\n")
}

fn write_executable(path: &Path, text: &str) -> Result<(), String> {
    use std::os::unix::fs::PermissionsExt;
    fs::write(path, text)
        .and_then(|()| fs::set_permissions(path, fs::Permissions::from_mode(0o755)))
        .map_err(|error| format!("cannot write `{}`: {error}", path.display()))
}

const EXPECTATIONS: &str = "xtask/packetdrill/expectations.txt";

/// Which scripts must fail, and why.
struct Expectations(Vec<reasons::Entry>);

impl Expectations {
    /// The lines below a reason, `class: words`, are the ends of the paths of the scripts that fail
    /// for it.
    fn read() -> Result<Expectations, String> {
        Expectations::new(reasons::read(EXPECTATIONS)?)
    }

    fn new(entries: Vec<reasons::Entry>) -> Result<Expectations, String> {
        let mut names = BTreeSet::new();
        match entries.iter().find(|(name, _)| !names.insert(name)) {
            Some((name, _)) => Err(format!(
                "{EXPECTATIONS}: `{name}` is there twice; leave one reason"
            )),
            None => Ok(Expectations(entries)),
        }
    }

    fn reason(&self, script: &Path) -> Option<&str> {
        let expected = self.0.iter().find(|(name, _)| script.ends_with(name));
        expected.map(|(_, reason)| reason.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_last_octets_written_keep_the_push_of_a_burst() {
        let script = "\
   +0 < S 0:0(0) win 32792 <mss 1000,sackOK>
   +0 accept(3, ..., ...) = 4
   +0 write(4, ..., 4000) = 4000
   +0 > P. 1:3001(3000) ack 1
  +.1 < P. 1:3001(3000) ack 3001 win 257
   +0 > P. 3001:4001(1000) ack 1
   +0 send(4, ..., 2000, MSG_NOSIGNAL) = 2000
   +0 > P. 4001:6001(2000) ack 1
   +0 > P. 3001:4001(1000) ack 1
";
        let changed = script.replace("> P. 1:3001(3000)", "> . 1:3001(3000)");
        assert_eq!(without_push_of_bursts(script), changed);
    }

    #[test]
    fn a_reason_holds_for_the_scripts_below_it() {
        let text = "# words\nlinux: one\n  tcp/a.pkt\n\n  tcp/b.pkt\ntool: two\n  tcp/c/a.pkt\n";
        let parse = |text| reasons::parse("f", text).and_then(Expectations::new);
        let parsed = parse(text).expect("well-formed");
        let reason = |path: &str| parsed.reason(Path::new(path));
        assert_eq!(reason("/x/tcp/b.pkt"), Some("linux: one"));
        assert_eq!(reason("/x/tcp/c/a.pkt"), Some("tool: two"));
        assert_eq!(reason("/x/nottcp/a.pkt"), None);
        assert!(parse("  tcp/a.pkt\n").is_err_and(|e| e.contains("f:1:")));
        assert!(parse("r: x\n a.pkt\n a.pkt\n").is_err_and(|e| e.contains("`a.pkt`")));
    }
}
