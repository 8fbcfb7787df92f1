use super::naive_sum;
use crate::wire::checksum::*;
use proptest::prelude::*;

// RFC 1071 §3: the worked example.
#[test]
fn the_example_of_rfc_1071() {
    assert_eq!(
        sum(&[0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7]),
        0xddf2
    );
}

#[test]
fn carries_are_kept_over_the_longest_packet() {
    let ones = vec![0xff; 65_535];
    assert_eq!(sum(&ones), naive_sum(&ones));
    assert_eq!(sum(&[0; 1448]), 0);
    assert_eq!(sum(&[]), 0);
}

// RFC 8684 §3.3.1, Figure 10; figures made with the naive sum over the pseudo-header's octets.
#[test]
fn dss_checksum_covers_the_pseudo_header() {
    let pseudo = [
        0x01, 0x23, 0x45, 0x67, 0x89, 0xab, 0xcd, 0xef, 0, 0, 0, 1, 0, 5, 0, 0,
    ];
    let payload = b"hello";
    let whole = [&pseudo[..], payload].concat();
    let checksum = dss(0x0123_4567_89ab_cdef, 1, 5, sum(payload));
    assert_eq!(checksum, !naive_sum(&whole));
    // A DATA_FIN alone: subflow sequence number 0, length 1, no payload (§3.3.3).
    assert_eq!(dss(0, 0, 1, 0), 0xfffe);
}

// A sum of 0xffff is sent as 0, and either zero is accepted.
#[test]
fn both_zeros_of_ones_complement_are_valid() {
    assert_eq!(dss(0, 0xfffe, 1, 0), 0);
    assert!(dss_valid(0, 0xfffe, 1, 0, 0));
    assert!(dss_valid(0, 0xfffe, 1, 0, 0xffff));
    assert!(!dss_valid(0, 0xfffe, 1, 0, 1));
}

proptest! {
    #[test]
    fn sum_is_the_naive_sum_at_every_length_and_alignment(
        bytes in proptest::collection::vec(any::<u8>(), 0..300),
        start in 0usize..40,
    ) {
        let bytes = &bytes[start.min(bytes.len())..];
        prop_assert_eq!(sum(bytes), naive_sum(bytes));
    }

    #[test]
    fn copy_and_sum_does_both(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
        let mut copy = vec![0xa5; bytes.len()];
        prop_assert_eq!(copy_and_sum(&mut copy, &bytes), naive_sum(&bytes));
        prop_assert_eq!(copy, bytes);
    }

    #[test]
    fn parts_combine_to_the_whole(
        bytes in proptest::collection::vec(any::<u8>(), 0..300),
        cuts in proptest::collection::vec(0usize..300, 0..6),
    ) {
        let mut cuts: Vec<_> = cuts.into_iter().map(|cut| cut.min(bytes.len())).collect();
        cuts.push(bytes.len());
        cuts.sort_unstable();
        let mut acc = 0;
        let mut from = 0;
        for to in cuts {
            acc = combine_at(acc, sum(&bytes[from..to]), from);
            from = to;
        }
        prop_assert_eq!(acc, naive_sum(&bytes));
    }

    #[test]
    fn dss_checksum_is_valid_and_any_other_is_not(
        dsn: u64, subflow_seq: u32, len: u16, payload_sum: u16, wrong: u16,
    ) {
        let checksum = dss(dsn, subflow_seq, len, payload_sum);
        prop_assert!(dss_valid(dsn, subflow_seq, len, payload_sum, checksum));
        // 0 and 0xffff are the same number.
        if wrong % 0xffff != checksum % 0xffff {
            prop_assert!(!dss_valid(dsn, subflow_seq, len, payload_sum, wrong));
        }
    }
}
