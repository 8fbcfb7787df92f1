//! TCP Fast Open (RFC 7413) with the kernel's client, in plain TCP and with Multipath TCP (RFC 8684
//! Appendix B).

use super::Case;
use super::lab::{Client, ECHO, Lab};
use crate::topology::Family;

/// Opens two connections with `MSG_FASTOPEN`, the one after the other, and has what it sends on each
/// come back whole.
const CLIENT: &str = "
import hashlib, os, socket, sys
host, port, protocol = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
family = socket.AF_INET6 if ':' in host else socket.AF_INET
for n in range(2):
    with socket.socket(family, socket.SOCK_STREAM, protocol) as s:
        text = os.urandom(300000)
        # What fits the SYN goes with it, or nothing does for want of a cookie. It has to block: so no
        # timeout yet.
        sent = s.sendto(text[:1000], socket.MSG_FASTOPEN, (host, port))
        s.settimeout(10)
        came = bytearray()
        while sent < len(text) or len(came) < len(text):
            if sent < len(text):
                sent += s.send(text[sent:sent + 20000])
                if sent == len(text):
                    s.shutdown(socket.SHUT_WR)
            if len(came) < sent:
                part = s.recv(65536)
                if not part:
                    break
                came += part
        assert hashlib.sha256(came).digest() == hashlib.sha256(text).digest(), (n, len(came))
";
const IPPROTO_TCP: &str = "6";
const IPPROTO_MPTCP: &str = "262";

pub(super) fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for (client, kind) in [("tcp", Client::Tcp), ("mptcp", Client::Mptcp)] {
        for (family, of) in [("ipv4", Family::V4), ("ipv6", Family::V6)] {
            let name = format!("fast_open_{client}_{family}");
            cases.push(
                Case::new(name, move |lab| {
                    second_connection_sends_with_its_syn(lab, kind, of)
                })
                .configured(|config| {
                    for service in &mut config.services {
                        service.keys += "fast_open = \"on\"\n";
                    }
                }),
            );
        }
    }
    cases.push(Case::new("fast_open_off", |lab| {
        connect_twice(lab, Client::Tcp, Family::V4)?;
        let passive = lab.mpxd()?.status()?.counter("TCPFastOpenPassive")?;
        let active = lab.client_counters()?.get("TcpExtTCPFastOpenActive")?;
        match (passive, active) {
            (0, 0) => Ok(()),
            other => Err(format!("a service without Fast Open: {other:?}")),
        }
    }));
    cases.into_iter().map(Case::mpxd_only).collect()
}

/// The first one gets a cookie, the second one's SYN brings it with text, and both ends count that.
fn second_connection_sends_with_its_syn(
    lab: &mut Lab,
    client: Client,
    family: Family,
) -> Result<(), String> {
    connect_twice(lab, client, family)?;
    let status = lab.mpxd()?.status()?;
    let here = [
        status.counter("TCPFastOpenCookieReqd")?,
        status.counter("TCPFastOpenPassive")?,
        status.counter("TCPFastOpenPassiveFail")?,
    ];
    let client_counters = lab.client_counters()?;
    let there = [
        client_counters.get("TcpExtTCPFastOpenActive")?,
        client_counters.get("TcpExtTCPFastOpenActiveFail")?,
    ];
    if (here, there) != ([1, 1, 0], [1, 0]) {
        return Err(format!(
            "requests, opened, refused: {here:?}; the client's SYNs with text that were acknowledged \
             and not: {there:?}"
        ));
    }
    match client {
        Client::Mptcp => lab.expect_mptcp(0),
        Client::Tcp => lab.expect_no_mptcp(),
    }
}

fn connect_twice(lab: &Lab, client: Client, family: Family) -> Result<(), String> {
    let protocol = match client {
        Client::Mptcp => IPPROTO_MPTCP,
        Client::Tcp => IPPROTO_TCP,
    };
    let server = crate::topology::server_socket(family, 1, ECHO);
    let (host, port) = (server.ip().to_string(), server.port().to_string());
    let python = lab.topology.client.cmd("python3");
    let args = ["-c", CLIENT, &host, &port, protocol];
    python.args(args).run().map(drop)
}
