//! `mpxd conns`: the connections as `ss -tMni` shows the kernel's. A line for each that speaks
//! Multipath TCP, with one for each of its subflows below; plain TCP has one line.

use crate::admin::{self, word};
use serde_json::Value;
use std::fmt::Write as _;
use std::net::{IpAddr, SocketAddr};
use std::path::Path;

/// Which connections are wanted; all, unless it says something.
#[derive(Clone, Debug, Default)]
pub(crate) struct Filter {
    pub(crate) service: Option<String>,
    /// The address of the peer on any subflow.
    pub(crate) peer: Option<IpAddr>,
}

impl Filter {
    fn wants(&self, conn: &Value) -> bool {
        let is_peer =
            |address: &str, peer: IpAddr| address.parse().is_ok_and(|a: SocketAddr| a.ip() == peer);
        let from = |peer| {
            is_peer(word(conn, "peer"), peer)
                || subflows(conn).any(|subflow| is_peer(word(subflow, "remote"), peer))
        };
        self.service.as_ref().is_none_or(|s| conn["service"] == **s) && self.peer.is_none_or(from)
    }
}

/// What to print, or one line of error. What is read is made into text at once: a pager that waits
/// for its user keeps nobody else waiting.
pub(crate) fn ask(socket: &Path, json: bool, filter: &Filter) -> Result<String, String> {
    let mut text = if json { "[".to_owned() } else { header() };
    let mut separator = "\n";
    admin::fetch_connections(socket, |conn| {
        if !filter.wants(&conn) {
            return;
        }
        // Writing to a String does not fail.
        if json {
            let _ = write!(text, "{separator}{conn}");
            separator = ",\n";
        } else {
            connection(&mut text, &conn);
        }
    })?;
    if json {
        text.push_str("\n]");
    }
    Ok(text)
}

fn header() -> String {
    line(
        "Netid",
        "State",
        ("Recv-Q", "Send-Q"),
        "Local Address:Port",
        "Peer Address:Port",
        "Service",
    )
}

fn connection(text: &mut String, conn: &Value) {
    let service = word(conn, "service");
    let multipath = conn["mode"] != "tcp";
    if multipath {
        *text += &line(
            "mptcp",
            word(conn, "state"),
            (
                &number(conn, "unread_bytes"),
                &number(conn, "send_buffered_bytes"),
            ),
            word(conn, "local"),
            word(conn, "peer"),
            service,
        );
        *text += &format!("\t {}\n", connection_details(conn));
    }
    for subflow in subflows(conn) {
        let queues = match multipath {
            true => ["staged_bytes", "in_flight_bytes"].map(|key| number(subflow, key)),
            false => ["unread_bytes", "send_buffered_bytes"].map(|key| number(conn, key)),
        };
        *text += &line(
            "tcp",
            word(subflow, "state"),
            (&queues[0], &queues[1]),
            word(subflow, "local"),
            word(subflow, "remote"),
            service,
        );
        *text += &format!("\t {}\n", subflow_details(conn, subflow));
    }
}

/// What `ss -Mi` says of a connection, and a little more.
fn connection_details(conn: &Value) -> String {
    let sum = |key: &str| subflows(conn).filter_map(|s| s[key].as_u64()).sum::<u64>();
    let mut details = Details::default();
    details.value("subflows", subflows(conn).count());
    details.flag("pending", conn["mode"] == "pending");
    if let Some(version) = conn["version"].as_u64() {
        details.value("version", version);
    }
    details.flag("csum", conn["checksum"] == true);
    for key in [
        "token",
        "remote_token",
        "write_seq",
        "snd_una",
        "snd_nxt",
        "rcv_nxt",
    ] {
        details.value(key, word(conn, key));
    }
    for key in ["bytes_sent", "bytes_received", "retransmits"] {
        details.value(key, sum(key));
    }
    details.nonzero("ofo", &conn["out_of_order_bytes"]);
    details.value("age", number(conn, "age_ms"));
    details.value("rcv_space", number(conn, "receive_limit_bytes"));
    details.value("snd_space", number(conn, "send_limit_bytes"));
    details.value("mem", number(conn, "memory_bytes"));
    details.0
}

/// What `ss -ti` says of a socket, in its order and its units: milliseconds, segments.
fn subflow_details(conn: &Value, subflow: &Value) -> String {
    let count = |key: &str| subflow[key].as_u64().unwrap_or(0);
    let mss = count("mss_bytes").max(1);
    let mut details = Details::default();
    for (name, key) in [("ts", "timestamps"), ("sack", "sack"), ("ecn", "ecn")] {
        details.flag(name, subflow[key] == true);
    }
    details.flag(word(subflow, "congestion"), true);
    if let [peers, ours] = subflow["window_scales"]
        .as_array()
        .map_or(&[][..], |scales| scales)
    {
        details.value("wscale", format!("{peers},{ours}"));
    }
    details.value("rto", count("rto_ms"));
    details.nonzero("backoff", &subflow["backoff"]);
    if let Some(srtt_us) = subflow["srtt_us"].as_u64() {
        let variation = milliseconds(count("rttvar_us"));
        details.value("rtt", format!("{}/{variation}", milliseconds(srtt_us)));
    }
    details.value("mss", mss);
    details.value("pmtu", count("path_mtu_bytes"));
    details.value("cwnd", count("cwnd_bytes") / mss);
    if let Some(ssthresh_bytes) = subflow["ssthresh_bytes"].as_u64() {
        details.value("ssthresh", ssthresh_bytes / mss);
    }
    if subflow["congestion_state"] != "open" {
        details.value("ca_state", word(subflow, "congestion_state"));
    }
    details.value("bytes_sent", count("bytes_sent"));
    details.value("bytes_received", count("bytes_received"));
    details.value("lastrcv", count("last_received_ms"));
    details.nonzero("unacked", &subflow["unacked_segments"]);
    if count("retransmits") > 0 {
        let (now, ever) = (count("retransmitted_segments"), count("retransmits"));
        details.value("retrans", format!("{now}/{ever}"));
    }
    details.nonzero("lost", &subflow["lost_segments"]);
    details.nonzero("sacked", &subflow["sacked_segments"]);
    details.nonzero("ofo", &subflow["out_of_order_bytes"]);
    if let Some(min_rtt_us) = subflow["min_rtt_us"].as_u64() {
        details.value("minrtt", milliseconds(min_rtt_us));
    }
    details.value("iface", count("iface"));
    if conn["mode"] == "tcp" {
        if let Some(cause) = conn["fallback"].as_str() {
            details.value("fallback", cause);
        }
        return details.0;
    }
    details.flag("tcp-ulp-mptcp", true);
    // The letters of ss: M(P_CAPABLE) or J(oin) by the peer, join by us (j), its B(ackup) and ours (b),
    // e(stablished).
    let is = |key: &str| subflow[key] == true;
    let letters = [
        ("M", is("capable")),
        ("J", is("joined") && !is("opened_here")),
        ("j", is("joined") && is("opened_here")),
        ("B", is("backup")),
        ("b", is("local_backup")),
        ("e", is("fully_established")),
    ];
    let flags: String = letters
        .into_iter()
        .filter(|(_, set)| *set)
        .map(|(letter, _)| letter)
        .collect();
    details.value("flags", flags);
    details.value(
        "token",
        format!(
            "{}(id:{})/{}(id:{})",
            word(conn, "remote_token"),
            count("remote_id"),
            word(conn, "token"),
            count("local_id")
        ),
    );
    details.0
}

/// `name:value` and plain words, apart by a space.
#[derive(Default)]
struct Details(String);

impl Details {
    fn flag(&mut self, name: &str, set: bool) {
        if set {
            if !self.0.is_empty() {
                self.0.push(' ');
            }
            self.0.push_str(name);
        }
    }

    fn value(&mut self, name: &str, value: impl std::fmt::Display) {
        self.flag(&format!("{name}:{value}"), true);
    }

    fn nonzero(&mut self, name: &str, value: &Value) {
        if let Some(value) = value.as_u64().filter(|&value| value > 0) {
            self.value(name, value);
        }
    }
}

fn line(
    netid: &str,
    state: &str,
    (receive, send): (&str, &str),
    local: &str,
    peer: &str,
    service: &str,
) -> String {
    format!("{netid:<5} {state:<10} {receive:<8} {send:<8} {local:>28} {peer:>28} {service}\n")
}

fn milliseconds(us: u64) -> String {
    format!("{}.{:03}", us / 1000, us % 1000)
}

fn number(value: &Value, key: &str) -> String {
    value[key].as_u64().unwrap_or(0).to_string()
}

fn subflows(conn: &Value) -> impl Iterator<Item = &Value> {
    conn["subflows"].as_array().into_iter().flatten()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::admin::{ControlSocket, Figures, Status, serve};
    use mpx_datapath::engine::{
        AddressChange, AddressStep, ConnectionPage, ConnectionReport, SubflowReport,
    };

    /// Two pages: a connection with two subflows, one over TCP; the second page comes or does not.
    struct Pages {
        broken: bool,
    }

    impl Figures for Pages {
        fn services(&self) -> Vec<&str> {
            vec![]
        }

        fn change_addresses(&self, _: &AddressChange, _: usize) -> Result<AddressStep, String> {
            Err("not here".to_owned())
        }

        fn status(&self) -> Result<Status, String> {
            Err("not here".to_owned())
        }

        fn connections(&self, from: usize) -> Result<ConnectionPage, String> {
            match from {
                0 => Ok(ConnectionPage {
                    conns: vec![sample(
                        "mptcp",
                        "web",
                        &["10.9.1.1:50000", "10.9.2.1:50001"],
                    )],
                    next: Some(64),
                }),
                64 if !self.broken => Ok(ConnectionPage {
                    conns: vec![sample("tcp", "echo", &["10.9.3.1:50002"])],
                    next: None,
                }),
                _ => Err("the worker does not answer; try again".to_owned()),
            }
        }
    }

    fn sample(mode: &'static str, service: &str, clients: &[&str]) -> ConnectionReport {
        let multipath = mode == "mptcp";
        let subflows = clients
            .iter()
            .enumerate()
            .map(|(index, client)| SubflowReport {
                local: "10.9.1.2:80".parse().unwrap(),
                remote: client.parse().unwrap(),
                iface: 0,
                state: "ESTAB",
                capable: multipath && index == 0,
                joined: index > 0,
                opened_here: false,
                backup: index > 0,
                local_backup: false,
                fully_established: multipath,
                local_id: index as u8,
                remote_id: 2 * index as u8,
                timestamps: true,
                sack: true,
                ecn: false,
                window_scales: Some((10, 7)),
                srtt_us: Some(5634),
                min_rtt_us: Some(38),
                rttvar_us: 11_135,
                rto_ms: 208,
                backoff: 0,
                congestion: "cubic",
                congestion_state: "open",
                cwnd_bytes: 14_480,
                ssthresh_bytes: None,
                mss_bytes: 1448,
                path_mtu_bytes: 1500,
                in_flight_bytes: 2896,
                unacked_segments: 2,
                sacked_segments: 0,
                lost_segments: 0,
                retransmitted_segments: 1,
                retransmits: 4,
                bytes_sent: 5_000_000,
                bytes_received: 4000,
                last_received_ms: 12,
                staged_bytes: 0,
                out_of_order_bytes: 0,
            });
        ConnectionReport {
            service: service.into(),
            peer: clients[0].parse().unwrap(),
            local: "10.9.1.2:80".parse().unwrap(),
            state: "ESTAB",
            mode,
            version: multipath.then_some(1),
            fallback: None,
            token: if multipath { 0x13ba_c87f } else { 0 },
            remote_token: if multipath { 0xc71f_9ce4 } else { 0 },
            write_seq: 0xf72f_1ce9_6c27_3de2,
            snd_una: 0xf72f_1ce9_6c27_3de1,
            snd_nxt: 0xf72f_1ce9_6c27_3de2,
            rcv_nxt: 0x3daf_cb1b_943d_ec5c,
            checksum: true,
            age_ms: 10,
            unread_bytes: 3,
            out_of_order_bytes: 0,
            receive_limit_bytes: 131_072,
            send_buffered_bytes: 1,
            send_limit_bytes: 65_536,
            memory_bytes: 14_321,
            subflows: subflows.collect(),
        }
    }

    fn serving(broken: bool) -> (tempfile::TempDir, std::path::PathBuf, ControlSocket) {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("m.sock");
        let socket = ControlSocket::bind(&path).unwrap();
        let listener = socket.listener().unwrap();
        std::thread::spawn(move || serve(&listener, &Pages { broken }));
        (directory, path, socket)
    }

    #[test]
    fn all_pages_as_ss_shows_them() {
        let (_directory, path, _socket) = serving(false);
        let text = ask(&path, false, &Filter::default()).unwrap();
        let lines: Vec<_> = text.lines().collect();
        let words = |at: usize| lines[at].split_whitespace().collect::<Vec<_>>();
        assert_eq!(lines.len(), 1 + 2 * (1 + 2 + 1), "{text}");
        assert_eq!(
            words(1),
            [
                "mptcp",
                "ESTAB",
                "3",
                "1",
                "10.9.1.2:80",
                "10.9.1.1:50000",
                "web"
            ]
        );
        assert_eq!(
            lines[2],
            "\t subflows:2 version:1 csum token:13bac87f remote_token:c71f9ce4 write_seq:f72f1ce96c273de2 \
             snd_una:f72f1ce96c273de1 snd_nxt:f72f1ce96c273de2 rcv_nxt:3dafcb1b943dec5c \
             bytes_sent:10000000 bytes_received:8000 retransmits:8 age:10 rcv_space:131072 \
             snd_space:65536 mem:14321"
        );
        assert_eq!(
            lines[4],
            "\t ts sack cubic wscale:10,7 rto:208 rtt:5.634/11.135 mss:1448 pmtu:1500 cwnd:10 \
             bytes_sent:5000000 bytes_received:4000 lastrcv:12 unacked:2 retrans:1/4 \
             minrtt:0.038 iface:0 tcp-ulp-mptcp flags:Me token:c71f9ce4(id:0)/13bac87f(id:0)"
        );
        assert!(
            lines[6].ends_with("flags:JBe token:c71f9ce4(id:2)/13bac87f(id:1)"),
            "{text}"
        );
        assert_eq!(
            words(7),
            [
                "tcp",
                "ESTAB",
                "3",
                "1",
                "10.9.1.2:80",
                "10.9.3.1:50002",
                "echo"
            ]
        );
        assert!(lines[8].ends_with("minrtt:0.038 iface:0"), "{text}");
    }

    #[test]
    fn json_is_one_list_and_filters_choose_from_it() {
        let (_directory, path, _socket) = serving(false);
        let services = |filter: &Filter| -> Vec<String> {
            let text = ask(&path, true, filter).unwrap();
            let list: Vec<Value> = serde_json::from_str(&text).unwrap();
            list.iter().map(|c| word(c, "service").to_owned()).collect()
        };
        let by = |service: Option<&str>, peer: Option<&str>| Filter {
            service: service.map(str::to_owned),
            peer: peer.map(|p| p.parse().unwrap()),
        };
        assert_eq!(services(&by(None, None)), ["web", "echo"]);
        assert_eq!(services(&by(Some("echo"), None)), ["echo"]);
        // The address of the second subflow.
        assert_eq!(services(&by(None, Some("10.9.2.1"))), ["web"]);
        assert!(services(&by(Some("echo"), Some("10.9.2.1"))).is_empty());
    }

    #[test]
    fn a_list_that_breaks_off_does_not_pass_for_a_whole_one() {
        let (_directory, path, _socket) = serving(true);
        let error = ask(&path, true, &Filter::default()).unwrap_err();
        assert_eq!(error, "the worker does not answer; try again");
    }
}
