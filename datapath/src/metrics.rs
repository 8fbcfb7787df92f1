//! Every counter of the datapath, once. Names follow the kernel's MIB where one exists; whatever
//! shows a counter reads it here.

use crate::tcp::ecn;

macro_rules! counters {
    ($( $(#[doc = $doc:literal])* $field:ident => $name:literal ),+ $(,)?) => {
        /// Counters of one worker: plain integers, written by one thread.
        #[derive(Clone, Debug, Default, PartialEq, Eq)]
        pub struct Metrics {
            $( $(#[doc = $doc])* pub $field: u64, )+
        }

        impl Metrics {
            /// Those of another worker beside these.
            pub fn add(&mut self, other: &Metrics) {
                $( self.$field += other.$field; )+
            }

            /// Names and values in the order of declaration.
            pub fn entries(&self) -> Vec<(&'static str, u64)> {
                vec![ $( ($name, self.$field) ),+ ]
            }
        }
    };
}

impl Metrics {
    /// Counts the ECN codepoint of a segment that came (RFC 3168 §5).
    pub(crate) fn count_codepoint(&mut self, traffic_class: u8) {
        match traffic_class & ecn::MASK {
            ecn::ECT_0 => self.in_ect0 += 1,
            ecn::ECT_1 => self.in_ect1 += 1,
            ecn::CE => self.in_ce += 1,
            _ => {}
        }
    }
}

counters! {
    rx_frames => "RxFrames",
    rx_bytes => "RxBytes",
    tx_frames => "TxFrames",
    tx_bytes => "TxBytes",

    drop_truncated => "DropTruncated",
    drop_not_tcp => "DropNotTcp",
    drop_fragment => "DropFragment",
    drop_bad_header => "DropBadHeader",
    drop_bad_ip_checksum => "DropBadIpChecksum",
    drop_bad_tcp_checksum => "DropBadTcpChecksum",
    drop_too_deep => "DropTooDeep",
    /// ICMP errors that say that a segment was too big, well-formed.
    icmp_in_msgs => "IcmpInMsgs",
    /// Other ICMP, which the XDP program should have left to the kernel.
    icmp_in_errors => "IcmpInErrors",
    icmp_in_csum_errors => "IcmpInCsumErrors",
    icmp_rate_limited => "IcmpRateLimited",
    /// ARP and neighbour discovery for addresses that we announce: what was sent.
    neighbor_answers => "NeighborAnswers",
    /// Questions for addresses that are not announced on the interface.
    neighbor_not_ours => "NeighborNotOurs",
    neighbor_rate_limited => "NeighborRateLimited",
    /// About no flow of ours, or one in TIME-WAIT.
    icmp_no_flow => "IcmpNoFlow",
    /// RFC 5927 §4.1: about a segment that is not in flight.
    out_of_window_icmps => "OutOfWindowIcmps",
    /// They claim less than the minimum of their protocol.
    path_mtu_below_minimum => "PathMtuBelowMinimum",
    /// They claim no less than what is sent, or than the packet that they quote.
    path_mtu_not_smaller => "PathMtuNotSmaller",
    /// RFC 7323 §3.2: a segment without the option on a flow that negotiated it.
    drop_no_timestamp => "DropNoTimestamp",
    /// A SYN refused because the table of connections or of half-open ones is full.
    listen_overflows => "ListenOverflows",
    /// SYN cookies that left, that came back, and acknowledgments of something else meanwhile.
    syncookies_sent => "SyncookiesSent",
    syncookies_recv => "SyncookiesRecv",
    syncookies_failed => "SyncookiesFailed",
    /// A cookie on a segment behind the one that it is for, which is to come again.
    syncookies_awaited => "SyncookiesAwaited",
    /// A segment of no known flow; answered with a RST unless it was one.
    no_flow => "NoFlow",
    /// Frames that came to the wrong worker and were passed on, and those that were taken in after that.
    mesh_forwards => "MeshForwards",
    mesh_received => "MeshReceived",
    /// Dropped because the queue to their worker was full.
    mesh_drops => "MeshDrops",
    /// Passed on to the worker that was named, which does not know them either. SYNs left out.
    wrong_worker => "WrongWorker",
    /// Times that the map of flows was asked whose a segment is, and segments dropped because it was
    /// asked too often.
    flow_lookups => "FlowLookups",
    flow_lookups_skipped => "FlowLookupsSkipped",
    /// Flows that did not come to be because the map of flows had no room, or because another worker
    /// has a flow of these addresses.
    flow_map_full => "FlowMapFull",
    flow_map_taken => "FlowMapTaken",
    /// Flows in TIME-WAIT that gave way to others in that map.
    flow_map_evicted => "FlowMapEvicted",
    /// A stateless answer that found its queue full.
    replies_dropped => "RepliesDropped",
    /// A subflow's TIME-WAIT cut short because the table is full.
    time_wait_overflow => "TCPTimeWaitOverflow",

    /// Segments from clients with the codepoints of RFC 3168 §5.
    in_ect0 => "InECT0Pkts",
    in_ect1 => "InECT1Pkts",
    in_ce => "InCEPkts",
    /// Subflows that agreed to ECN.
    ecn_setup => "EcnSetup",
    /// Windows that fell because the peer echoed a mark.
    ecn_window_falls => "EcnWindowFalls",

    /// Subflows that we began to open.
    active_opens => "ActiveOpens",
    passive_opens => "PassiveOpens",
    /// SYNs that opened their connection early (RFC 7413), those of them with a cookie that is about to
    /// expire, those whose cookie was not good, those that asked for one, and those that found too many
    /// connections open early already.
    fast_open_passive => "TCPFastOpenPassive",
    fast_open_ageing => "TCPFastOpenPassiveAltKey",
    fast_open_passive_fail => "TCPFastOpenPassiveFail",
    fast_open_cookie_requests => "TCPFastOpenCookieReqd",
    fast_open_overflow => "TCPFastOpenListenOverflow",
    connections_closed => "ConnectionsClosed",
    /// Connections that lost their last subflow, and those of them that one joined in time.
    stranded => "Stranded",
    rejoined => "Rejoined",
    /// Such connections that were ended to make room.
    stranded_overflow => "StrandedOverflow",
    time_wait_entered => "TimeWaitEntered",
    time_wait_recycled => "TWRecycled",
    resets_received => "EstabResets",
    resets_sent => "OutRsts",
    fins_sent => "FinsSent",
    challenge_acks => "TCPChallengeACK",
    /// Answers to segments that are not acceptable, left out because there was one just before: a
    /// challenge ACK (also beyond what the worker sends of them), an ACK of what is out of the
    /// window, of an old duplicate, in SYN-RECEIVED, in TIME-WAIT.
    ack_skipped_challenge => "TCPACKSkippedChallenge",
    ack_skipped_seq => "TCPACKSkippedSeq",
    ack_skipped_paws => "TCPACKSkippedPAWS",
    ack_skipped_syn_recv => "TCPACKSkippedSynRecv",
    ack_skipped_time_wait => "TCPACKSkippedTimeWait",
    /// RSTs for segments of no known flow, beyond what the worker sends of them.
    resets_skipped => "OutRstsSkipped",
    out_of_window => "OutOfWindow",
    paws_rejected => "PAWSEstab",
    ofo_queue => "TCPOFOQueue",
    /// ACKs that said that something came twice (RFC 2883): octets already acknowledged, or not yet.
    dsack_old_sent => "TCPDSACKOldSent",
    dsack_ofo_sent => "TCPDSACKOfoSent",
    tcp_retrans_segs => "RetransSegs",
    tcp_timeouts => "TCPTimeouts",
    tcp_fast_recoveries => "TCPFastRecoveries",
    /// Reductions of the window taken back: nothing had been lost.
    tcp_loss_undo => "TCPLossUndo",
    tcp_loss_probes => "TCPLossProbes",
    tcp_loss_probe_recovery => "TCPLossProbeRecovery",
    tcp_dsack_rx => "TCPDSACKRecv",
    syn_ack_timeouts => "SynAckTimeouts",
    /// A subflow given up after too many retransmissions.
    subflow_timeouts => "SubflowTimeouts",
    give_up_timeouts => "GiveUpTimeouts",
    /// Connections whose subflow FINs left without the peer's, held for as long as they may be.
    fin_hold_timeouts => "FinHoldTimeouts",
    /// An ICMP error was believed.
    path_mtu_reduced => "PathMtuReduced",
    /// RFC 4821 §7.7: timeouts in a row that look like a path MTU nobody tells us of.
    path_mtu_black_holes => "PathMtuBlackHoles",
    mtu_probes => "TCPMTUProbes",
    mtu_probe_success => "TCPMTUPSuccess",
    mtu_probe_fail => "TCPMTUPFail",
    zero_window_probes => "TCPWinProbe",
    keepalive_probes => "TCPKeepAlive",
    /// A subflow given up because nothing outstanding got on for as long as its service allows.
    user_timeouts => "UserTimeouts",

    mp_capable_syn_rx => "MPCapableSYNRX",
    /// Those of version 0 among them.
    mp_capable_syn_rx_v0 => "MPCapableSYNRXVersion0",
    mp_capable_syn_ack_tx => "MPCapableSYNACKTX",
    mp_capable_ack_rx => "MPCapableACKRX",
    mp_capable_fallback_ack => "MPCapableFallbackACK",
    /// Text that came before the segment with the keys, and was left to its retransmission.
    mp_capable_ack_awaited => "MPCapableACKAwaited",
    /// MP_CAPABLE in a SYN that asks for what is not spoken here: answered with plain TCP.
    mp_capable_refused => "MPCapableRefused",
    /// No key with a free token of ours was found: plain TCP.
    mp_fallback_token_init => "MPFallbackTokenInit",
    /// Plain TCP because the first text came without DSS or MP_CAPABLE.
    mp_capable_data_fallback => "MPCapableDataFallback",
    /// Because later text had no mapping, or an acknowledgment no DATA_ACK.
    dss_fallback => "DssFallback",
    /// Because a checksum failed on the only subflow: here, or at the peer.
    dss_corruption_fallback => "DSSCorruptionFallback",
    /// Subflows reset because a checksum failed on them.
    dss_corruption_reset => "DSSCorruptionReset",
    /// There was reason for it, but what is outstanding is not contiguous, or there are several
    /// subflows: the subflow is reset.
    fallback_failed => "FallbackFailed",
    mp_join_no_token => "MPJoinNoTokenFound",
    mp_join_syn_rx => "MPJoinSynRx",
    mp_join_syn_ack_tx => "MPJoinSynAckTx",
    mp_join_ack_rx => "MPJoinAckRx",
    /// Joins to another port than the initial subflow's.
    mp_join_port_syn_rx => "MPJoinPortSynRx",
    mp_join_port_ack_rx => "MPJoinPortAckRx",
    mp_join_ack_hmac_failure => "MPJoinAckHMacFailure",
    mp_join_ack_missing => "MPJoinAckMissing",
    /// Joins of ours to addresses that clients announced, what became of them, and how many of the
    /// answers came from another port than the initial subflow's.
    mp_join_syn_tx => "MPJoinSynTx",
    mp_join_syn_ack_rx => "MPJoinSynAckRx",
    mp_join_syn_ack_backup_rx => "MPJoinSynAckBackupRx",
    mp_join_port_syn_ack_rx => "MPJoinPortSynAckRx",
    mp_join_syn_ack_hmac_failure => "MPJoinSynAckHMacFailure",
    mp_join_syn_ack_missing => "MPJoinSynAckMissing",
    /// Those that nobody answered: the SYN, or the third ACK.
    join_timeouts => "MPJoinTimeouts",
    /// Addresses of clients that were not tried: too many are for now, or there is no way to them that
    /// address, rule, limits and flows in use leave.
    join_attempts_limited => "MPJoinSynTxLimited",
    join_attempts_refused => "MPJoinSynTxRefused",
    /// A join refused by policy, limit or the state of its connection.
    mp_join_rejected => "MPJoinRejected",
    /// Because too many of its source are pending.
    mp_join_source_limited => "MPJoinSourceLimited",
    dss_not_matching => "DSSNotMatching",
    dss_checksum_mismatch => "DSSChecksumMismatch",
    /// Text that no mapping ever covered.
    dss_missing => "NoDSSInWindow",
    /// A subflow that acknowledged text without a DATA_ACK, where there are others.
    data_ack_missing => "DataAckMissing",
    data_csum_err => "DataCsumErr",
    data_ofo_queue => "OFOQueue",
    duplicate_data => "DuplicateData",
    /// Text beyond the data-level window or beyond what is kept out of order.
    rcv_pruned => "RcvPruned",
    /// Segments in order and inside the window that were not taken in, as nothing could keep them.
    rcv_queue_drop => "TCPRcvQDrop",
    /// The same out of order.
    ofo_drop => "TCPOFODrop",
    /// Times that what a subflow kept out of order was dropped to take in what was in order.
    ofo_pruned => "OfoPruned",
    /// Times that memory became scarce.
    memory_pressures => "TCPMemoryPressures",
    /// Connections and subflows refused meanwhile.
    memory_refused => "MemoryRefused",
    infinite_map_tx => "InfiniteMapTx",
    infinite_map_rx => "InfiniteMapRx",
    /// Segments that left with octets which another subflow carried before, or the same one.
    reinjected_segments => "ReinjectedSegments",
    data_timeouts => "DataTimeouts",
    /// ADD_ADDR and its echoes, and how many of either had a port.
    add_addr => "AddAddr",
    echo_add => "EchoAdd",
    port_add => "PortAdd",
    /// Not kept: of no use, too many, or with the ID of another address.
    add_addr_drop => "AddAddrDrop",
    add_addr_hmac_failure => "AddAddrHMacFailure",
    add_addr_tx => "AddAddrTx",
    echo_add_tx => "EchoAddTx",
    echo_add_tx_drop => "EchoAddTxDrop",
    /// Announcements that were repeated as often as they may be and never echoed.
    add_addr_unechoed => "AddAddrUnechoed",
    /// Failures of subflows after which an address is announced anew.
    add_addr_again => "AddAddrAgain",
    /// Address IDs that peers removed.
    rm_addr => "RmAddr",
    rm_addr_tx => "RmAddrTx",
    /// Subflows that no longer answered after that.
    rm_subflow => "RmSubflow",
    mp_prio_tx => "MPPrioTx",
    mp_prio_rx => "MPPrioRx",
    mp_fail_tx => "MPFailTx",
    mp_fail_rx => "MPFailRx",
    /// Connections that their app aborted.
    app_aborts => "AppAborts",
    /// Segments with MP_FASTCLOSE, on whatever kind.
    mp_fastclose_tx => "MPFastcloseTx",
    mp_fastclose_rx => "MPFastcloseRx",
    mp_rst_tx => "MPRstTx",
    mp_rst_rx => "MPRstRx",
}
