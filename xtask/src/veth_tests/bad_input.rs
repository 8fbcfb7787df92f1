//! What an operator can get wrong: exit status 1, one line that names the place and the remedy,
//! and nothing left attached.

use std::io::Write;
use std::time::Duration;

use super::Case;
use super::lab::{Client, ECHO, Lab};
use crate::process::{Cmd, Output, until};
use crate::project;
use crate::server::{self, Mpxd, Server};
use crate::topology::{Family, server_socket};

const GOOD: &str = r#"control_socket = "SOCKET"

[[interface]]
name = "s1"

[[service]]
name = "web"
listen = ["10.9.1.2:80"]
app = { kind = "proxy", backends = ["127.0.0.1:8080"] }
"#;

/// What is wrong, an edit of `GOOD`, and what the error must contain: the line first.
const CONFIGURATIONS: &[(&str, &str, &str, &[&str])] = &[
    (
        "unknown key",
        "name = \"web\"",
        "name = \"web\"\nlisen = []",
        &[":8:", "lisen", "unknown key"],
    ),
    (
        "unknown top-level key",
        "[[interface]]",
        "colour = 1\n[[interface]]",
        &[":3:", "colour", "unknown key"],
    ),
    (
        "wrong type",
        "listen = [\"10.9.1.2:80\"]",
        "listen = 80",
        &[":8:", "listen", "write listen ="],
    ),
    ("not TOML", "name = \"s1\"", "name = s1", &[":4:"]),
    (
        "bad address",
        "10.9.1.2:80",
        "10.9.1.256:80",
        &[":8:", "service.listen", "10.9.1.256:80"],
    ),
    (
        "IPv4 address in IPv6 form",
        "10.9.1.2:80",
        "[::ffff:10.9.1.2]:80",
        &[":8:", "service.listen", "write \"10.9.1.2:80\""],
    ),
    (
        "backend by its name",
        "127.0.0.1:8080",
        "localhost:8080",
        &[":9:", "service.app.backends", "localhost:8080"],
    ),
    (
        "control socket in no directory",
        "\"SOCKET\"",
        "\"/nonexistent/mpxd.sock\"",
        &["control_socket", "/nonexistent/mpxd.sock", "choose a path"],
    ),
    (
        "unknown app",
        "\"proxy\"",
        "\"prxy\"",
        &[":9:", "service.app.kind", "prxy", "echo"],
    ),
    (
        "no backends",
        "[\"127.0.0.1:8080\"]",
        "[]",
        &[":9:", "service.app.backends"],
    ),
    (
        "backends missing",
        ", backends = [\"127.0.0.1:8080\"]",
        "",
        &[":9:", "backends"],
    ),
    (
        "two services on one address and port",
        "[[service]]",
        "[[service]]\nname = \"other\"\nlisten = [\"0.0.0.0:80\"]\napp = { kind = \"echo\" }\n\n[[service]]",
        &[":13:", "service.listen", "10.9.1.2:80"],
    ),
    (
        "a core that is not there",
        "[[interface]]",
        "cores = [9999]\n\n[[interface]]",
        &["cores", "9999", "choose from"],
    ),
    (
        "interface that does not exist",
        "\"s1\"",
        "\"s9\"",
        &[":4:", "interface.name", "s9", "s1"],
    ),
];

pub(super) fn cases() -> Vec<Case> {
    [
        Case::new("bad_configurations", |lab| {
            // Else every refusal below could have another reason.
            accepted(lab, GOOD)?;
            for (what, from, to, words) in CONFIGURATIONS {
                if !GOOD.contains(from) {
                    return Err(format!("{what}: the configuration has no `{from}`"));
                }
                refused(lab, &GOOD.replacen(from, to, 1), words)
                    .map_err(|error| format!("{what}: {error}"))?;
            }
            Ok(())
        }),
        Case::new("missing_configuration_file", |lab| {
            for verb in ["check", "run"] {
                let output = lab
                    .topology
                    .server
                    .cmd(project::release_binary("mpxd"))
                    .args([verb, "--config", "/nonexistent/mpxd.toml"])
                    .output()?;
                one_line(&output, &["/nonexistent/mpxd.toml", "--config"])?;
            }
            Ok(())
        }),
        Case::new("mtu_above_what_a_frame_holds", |lab| {
            let mtu = |lab: &Lab, bytes: u32| {
                lab.topology
                    .client
                    .ip(&format!("link set c1 mtu {bytes}\n"))?;
                lab.topology
                    .server
                    .ip(&format!("link set s1 mtu {bytes}\n"))
            };
            mtu(lab, 9000)?;
            refused(lab, GOOD, &[":4:", "s1", "9000", "ip link set s1 mtu"])?;
            mtu(lab, 1500)?;
            accepted(lab, GOOD)
        }),
        Case::new("interface_that_is_down", |lab| {
            lab.topology.server.ip("link set s1 down\n")?;
            refused(lab, GOOD, &[":4:", "s1", "down", "ip link set s1 up"])
        }),
        Case::new("missing_privileges", |lab| {
            for (dropped, named) in [
                ("-net_admin", "CAP_NET_ADMIN"),
                ("-net_raw", "CAP_NET_RAW"),
                ("-bpf,-sys_admin", "CAP_BPF"),
                ("-perfmon,-sys_admin", "CAP_PERFMON"),
                ("-ipc_lock", "CAP_IPC_LOCK"),
            ] {
                let file = write(lab, GOOD)?;
                let output = lab
                    .topology
                    .server
                    .cmd("setpriv")
                    .args(["--bounding-set", dropped, "--inh-caps", dropped])
                    .arg(project::release_binary("mpxd"))
                    .args(["run", "--config", &file])
                    .output()?;
                one_line(&output, &[named]).map_err(|error| format!("{named}: {error}"))?;
                nothing_attached(lab)?;
            }
            Ok(())
        }),
        Case::new("named_privileges_suffice", |lab| {
            const NAMED: &str = "+net_admin,+net_raw,+bpf,+perfmon,+ipc_lock";
            let cmd = lab
                .topology
                .server
                .cmd("setpriv")
                .args(["--bounding-set", &format!("-all,{NAMED}")])
                .args(["--inh-caps", &format!("-all,{NAMED}")])
                .arg(project::release_binary("mpxd"));
            let mpxd = Mpxd::start_as(cmd, lab.scratch.path(), &lab.config)?;
            lab.server = Some(Server::Mpxd(mpxd));
            echo_works(lab)
        }),
        Case::new("takeover_serves_in_front_of_a_kernel_socket", |lab| {
            let held = [server_socket(Family::V4, 1, ECHO)];
            // It never answers.
            let _listener =
                server::spawn_peer_server(&lab.topology.server, false, "stall", &held, None, 0)?;
            lab.config.keys = "takeover = true\n".to_owned();
            lab.start_server()?;
            echo_works(lab)?;
            // It is over too soon to wait for a join.
            lab.expect_mptcp(0)
        }),
        Case::new("xdp_attached_by_someone_else", |lab| {
            lab.start_server()?;
            refused_with_xdp(lab, GOOD, &[":4:", "s1", "XDP"])?;
            // The other one goes on serving.
            echo_works(lab)
        }),
        Case::new("kernel_socket_listens_on_a_service_address", |lab| {
            let held = ["10.9.1.2:80".parse().map_err(|error| format!("{error}"))?];
            let listener =
                server::spawn_peer_server(&lab.topology.server, false, "echo", &held, None, 0)?;
            refused(
                lab,
                GOOD,
                &[":8:", "10.9.1.2:80", "xtask", "takeover = true"],
            )?;
            accepted(lab, &format!("takeover = true\n{GOOD}"))?;
            drop(listener);
            accepted(lab, GOOD)
        }),
        Case::new("kernel_socket_connected_on_a_service_address", |lab| {
            // A connection out of the server whose own end is the service's address and port.
            let held = ["10.9.1.1:4000"
                .parse()
                .map_err(|error| format!("{error}"))?];
            let _listener =
                server::spawn_peer_server(&lab.topology.client, false, "stall", &held, None, 0)?;
            let mut client = lab
                .topology
                .server
                .cmd("curl")
                .args(["-sS", "--interface", "10.9.1.2", "--local-port", "80"])
                .args(["--max-time", "30", "http://10.9.1.1:4000/"])
                .spawn()?;
            until(Duration::from_secs(5), "a connected socket", || {
                if client.poll()?.is_some() {
                    return Err(format!("curl ended: {}", client.stderr()));
                }
                let sockets = lab.topology.server.cmd("ss").args(["-Htn"]).run()?;
                Ok(sockets.contains("10.9.1.2:80"))
            })?;
            refused(
                lab,
                GOOD,
                &[":8:", "10.9.1.2:80", "curl", "takeover = true"],
            )?;
            accepted(lab, &format!("takeover = true\n{GOOD}"))
        }),
    ]
    .into_iter()
    .map(Case::no_server)
    .collect()
}

/// Both verbs refuse the configuration, and nothing is attached.
fn refused(lab: &Lab, config: &str, words: &[&str]) -> Result<(), String> {
    refused_with_xdp(lab, config, words)?;
    nothing_attached(lab)
}

fn refused_with_xdp(lab: &Lab, config: &str, words: &[&str]) -> Result<(), String> {
    let file = write(lab, config)?;
    for verb in ["check", "run"] {
        let output = mpxd(lab, verb, &file)
            .limit(Duration::from_secs(5))
            .output()?;
        let mut words = words.to_vec();
        words.push(&file);
        one_line(&output, &words).map_err(|error| format!("mpxd {verb}: {error}"))?;
    }
    Ok(())
}

fn accepted(lab: &Lab, config: &str) -> Result<(), String> {
    let file = write(lab, config)?;
    mpxd(lab, "check", &file).run()?;
    nothing_attached(lab)
}

fn mpxd(lab: &Lab, verb: &str, file: &str) -> Cmd {
    lab.topology
        .server
        .cmd(project::release_binary("mpxd"))
        .args([verb, "--config", file])
}

fn write(lab: &Lab, config: &str) -> Result<String, String> {
    let path = lab.scratch.join("bad.toml");
    let socket = lab.scratch.join("bad.sock");
    let text = config.replace("SOCKET", &socket.to_string_lossy());
    std::fs::File::create(&path)
        .and_then(|mut file| file.write_all(text.as_bytes()))
        .map_err(|error| format!("cannot write {}: {error}", path.display()))?;
    Ok(path.to_string_lossy().into_owned())
}

/// Exit status 1 and one line on the standard error that has all the words.
fn one_line(output: &Output, words: &[&str]) -> Result<(), String> {
    let text = output.stderr.trim_end();
    if output.status.code() != Some(1) {
        return Err(format!("ended with {} instead of 1: {text}", output.status));
    }
    if text.lines().count() != 1 {
        return Err(format!("said not one line but: {text:?}"));
    }
    match words.iter().find(|word| !text.contains(**word)) {
        None => Ok(()),
        Some(word) => Err(format!("the error does not say `{word}`: {text}")),
    }
}

fn nothing_attached(lab: &Lab) -> Result<(), String> {
    for path in lab.topology.paths() {
        let device = format!("s{path}");
        if lab.topology.server.has_xdp(&device)? {
            return Err(format!("an XDP program is left on {device}"));
        }
    }
    Ok(())
}

fn echo_works(lab: &Lab) -> Result<(), String> {
    if !matches!(lab.server, Some(Server::Mpxd(_))) {
        return Err("no server is running".to_owned());
    }
    lab.peer(Client::Mptcp)?
        .args(["exchange", "--expect", "echo", "--bytes", "100000", "--to"])
        .arg(server_socket(Family::V4, 1, ECHO).to_string())
        .run()
        .map(drop)
}
