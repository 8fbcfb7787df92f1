//! `mpxd nstat`: the counters as the kernel's `nstat -as` shows its own.

use crate::admin;
use serde_json::{Map, Value};
use std::fmt::Write as _;
use std::path::Path;

/// The kernel's tables, and what is counted here in their terms; the names that `nstat` prints are
/// both together. `cargo xtask test --veth counters_agree` holds them against a running kernel.
const MIBS: &[(&str, &[&str])] = &[
    (
        "Tcp",
        &[
            "ActiveOpens",
            "EstabResets",
            "OutRsts",
            "PassiveOpens",
            "RetransSegs",
        ],
    ),
    (
        "TcpExt",
        &[
            "ListenOverflows",
            "OfoPruned",
            "OutOfWindowIcmps",
            "PAWSEstab",
            "RcvPruned",
            "SyncookiesFailed",
            "SyncookiesRecv",
            "SyncookiesSent",
            "TCPACKSkippedChallenge",
            "TCPACKSkippedPAWS",
            "TCPACKSkippedSeq",
            "TCPACKSkippedSynRecv",
            "TCPACKSkippedTimeWait",
            "TCPChallengeACK",
            "TCPDSACKOfoSent",
            "TCPDSACKOldSent",
            "TCPDSACKRecv",
            "TCPFastOpenCookieReqd",
            "TCPFastOpenListenOverflow",
            "TCPFastOpenPassive",
            "TCPFastOpenPassiveAltKey",
            "TCPFastOpenPassiveFail",
            "TCPKeepAlive",
            "TCPLossProbeRecovery",
            "TCPLossProbes",
            "TCPLossUndo",
            "TCPMTUPFail",
            "TCPMTUPSuccess",
            "TCPMemoryPressures",
            "TCPOFODrop",
            "TCPOFOQueue",
            "TCPRcvQDrop",
            "TCPTimeWaitOverflow",
            "TCPTimeouts",
            "TCPWinProbe",
            "TWRecycled",
        ],
    ),
    ("IpExt", &["InCEPkts", "InECT0Pkts", "InECT1Pkts"]),
    ("Icmp", &["InCsumErrors", "InErrors", "InMsgs"]),
    (
        "MPTcpExt",
        &[
            "AddAddr",
            "AddAddrDrop",
            "AddAddrTx",
            "DSSCorruptionFallback",
            "DSSCorruptionReset",
            "DSSNotMatching",
            "DataCsumErr",
            "DssFallback",
            "DuplicateData",
            "EchoAdd",
            "EchoAddTx",
            "EchoAddTxDrop",
            "FallbackFailed",
            "InfiniteMapRx",
            "InfiniteMapTx",
            "MPCapableACKRX",
            "MPCapableDataFallback",
            "MPCapableFallbackACK",
            "MPCapableSYNRX",
            "MPFailRx",
            "MPFailTx",
            "MPFallbackTokenInit",
            "MPFastcloseRx",
            "MPFastcloseTx",
            "MPJoinAckHMacFailure",
            "MPJoinAckRx",
            "MPJoinNoTokenFound",
            "MPJoinPortAckRx",
            "MPJoinPortSynRx",
            "MPJoinPortSynAckRx",
            "MPJoinRejected",
            "MPJoinSynAckBackupRx",
            "MPJoinSynAckHMacFailure",
            "MPJoinSynAckRx",
            "MPJoinSynRx",
            "MPJoinSynTx",
            "MPPrioRx",
            "MPPrioTx",
            "MPRstRx",
            "MPRstTx",
            "NoDSSInWindow",
            "OFOQueue",
            "PortAdd",
            "RmAddr",
            "RmAddrTx",
            "RmSubflow",
        ],
    ),
];

/// What to print, or one line of error.
pub(crate) fn ask(socket: &Path, json: bool, zeros: bool) -> Result<String, String> {
    let status = admin::fetch_status(socket)?;
    let counters = counters(&status, zeros);
    Ok(if json {
        format!("{:#}", serde_json::json!({ "mpxd": counters }))
    } else {
        readable(&counters)
    })
}

/// Of the datapath and of the XDP program.
fn counters(status: &Value, zeros: bool) -> Map<String, Value> {
    let of = |table: &str| status[table].as_object().cloned().unwrap_or_default();
    let datapath = of("counters").into_iter();
    let named = datapath.map(|(name, value)| (mib_name(&name), value));
    named
        .chain(of("xdp"))
        .filter(|(_, value)| zeros || value.as_u64() != Some(0))
        .collect()
}

/// A counter with the name of its table in front.
fn mib_name(counter: &str) -> String {
    for (mib, names) in MIBS {
        // Some stand here with their table's name, as `IcmpInMsgs`.
        let own = counter.strip_prefix(mib).unwrap_or(counter);
        if names.contains(&own) {
            return format!("{mib}{own}");
        }
    }
    format!("Mpxd{counter}")
}

fn readable(counters: &Map<String, Value>) -> String {
    let mut text = "#mpxd\n".to_owned();
    for (name, value) in counters {
        // Writing to a String does not fail.
        let _ = writeln!(text, "{name:<32}{value}");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_have_the_names_that_nstat_gives_them() {
        let status = serde_json::json!({
            "counters": {
                "RxFrames": 17, "OutRsts": 2, "IcmpInMsgs": 3, "MPJoinSynRx": 5, "TCPTimeouts": 0,
            },
            "xdp": { "XdpRedirectHome": 9 },
        });
        let shown = readable(&counters(&status, false));
        assert_eq!(
            shown,
            "#mpxd\n\
             IcmpInMsgs                      3\n\
             MPTcpExtMPJoinSynRx             5\n\
             MpxdRxFrames                    17\n\
             TcpOutRsts                      2\n\
             XdpRedirectHome                 9\n"
        );
        let all = counters(&status, true);
        assert_eq!(all["TcpExtTCPTimeouts"], 0);
    }
}
