//! The client's own packet filter takes MPTCP options off what comes or goes, from a segment on, as a
//! middlebox would (RFC 8684 §3.7): both kernels' counters and ours tell the same story, and files
//! come over whole wherever the RFC has the connection go on.

use super::Case;
use super::lab::{Client, Lab, NO_CHECKSUM, WEB};
use crate::topology::Family;

const FILE: &str = "8m";

/// What loses its options.
#[derive(Clone, Copy)]
enum Stripped {
    Syn,
    SynAck,
    ThirdAckOn,
    /// Segments with text, from the client.
    TextUp,
    /// Everything behind the SYN/ACK, to the client.
    AllDown,
}

pub(super) fn cases() -> Vec<Case> {
    let kinds = [
        ("syn", Stripped::Syn),
        ("syn_ack", Stripped::SynAck),
        ("third_ack_on", Stripped::ThirdAckOn),
        ("text_up", Stripped::TextUp),
        ("all_down", Stripped::AllDown),
    ];
    let cases = kinds.map(|(name, stripped)| {
        Case::new(format!("fallback_{name}"), move |lab| {
            falls_back(lab, stripped)
        })
        .paths(1)
        .falls_back()
        .mpxd_only()
    });
    cases.into()
}

fn falls_back(lab: &mut Lab, stripped: Stripped) -> Result<(), String> {
    strip(lab, stripped)?;
    for port in [WEB, NO_CHECKSUM] {
        lab.download(Client::Mptcp, Family::V4, port, FILE)?;
        // Linux falls back at the first acknowledgment without a DATA_ACK, but without the infinite mapping
        // that RFC 8684 §3.7 has it send: text without a mapping behind text with one is not believed.
        if !matches!(stripped, Stripped::AllDown) {
            lab.upload(Client::Mptcp, Family::V4, port, FILE)?;
        }
    }
    let status = lab.mpxd()?.status()?;
    let client = lab.client_counters()?;
    // Two or four connections, each with a fallback on the side that can know of it.
    let (counter, kernel) = match stripped {
        Stripped::Syn => return no_fallback(status.counter("MPCapableSYNRX")?),
        Stripped::SynAck => (
            status.counter("MPCapableFallbackACK")?,
            Some(client.get("MPTcpExtMPCapableFallbackSYNACK")?),
        ),
        Stripped::ThirdAckOn => (status.counter("MPCapableFallbackACK")?, None),
        Stripped::TextUp => (
            status.counter("MPCapableDataFallback")? + status.counter("DssFallback")?,
            None,
        ),
        Stripped::AllDown => (
            status.counter("InfiniteMapRx")? + status.counter("DssFallback")?,
            None,
        ),
    };
    if counter == 0 || kernel.is_some_and(|kernel| kernel != counter) {
        return Err(format!(
            "{counter} fallbacks here, {kernel:?} at the client"
        ));
    }
    Ok(())
}

fn no_fallback(asked: u64) -> Result<(), String> {
    match asked {
        0 => Ok(()),
        n => Err(format!("{n} SYNs came with MP_CAPABLE")),
    }
}

fn strip(lab: &Lab, stripped: Stripped) -> Result<(), String> {
    let (hook, which) = match stripped {
        Stripped::Syn => ("egress", "tcp flags & (syn | ack) == syn"),
        Stripped::SynAck => ("ingress", "tcp flags & (syn | ack) == syn | ack"),
        Stripped::ThirdAckOn => ("egress", "tcp flags & syn == 0"),
        Stripped::TextUp => ("egress", "tcp flags & syn == 0 ip length > 100"),
        Stripped::AllDown => ("ingress", "tcp flags & syn == 0"),
    };
    let rules = format!(
        "table netdev middlebox {{\n  chain strip {{\n    \
         type filter hook {hook} device \"c1\" priority 0\n    \
         ip protocol tcp {which} reset tcp option mptcp\n  }}\n}}\n"
    );
    let nft = lab.topology.client.cmd("nft").args(["-f", "-"]);
    nft.input(rules).run().map(drop)
}
