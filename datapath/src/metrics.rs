//! Every counter of the datapath, once. Names follow the kernel's MIB where one exists; whatever
//! shows a counter reads it here.

macro_rules! counters {
    ($( $(#[doc = $doc:literal])* $field:ident => $name:literal ),+ $(,)?) => {
        /// Counters of one worker: plain integers, written by one thread.
        #[derive(Clone, Debug, Default, PartialEq, Eq)]
        pub struct Metrics {
            $( $(#[doc = $doc])* pub $field: u64, )+
        }

        impl Metrics {
            /// Names and values in the order of declaration.
            pub fn entries(&self) -> Vec<(&'static str, u64)> {
                vec![ $( ($name, self.$field) ),+ ]
            }

            /// Sums the counters of another worker into this one.
            pub fn add(&mut self, other: &Metrics) {
                $( self.$field += other.$field; )+
            }
        }
    };
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
}
