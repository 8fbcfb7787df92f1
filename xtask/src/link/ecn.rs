//! A router's part of explicit congestion notification (RFC 3168 §5).

const ETHERNET: usize = 14;
const NOT_ECT: u8 = 0b00;
const CE: u8 = 0b11;

/// Sets the code point "congestion experienced" where the ends said that they understand it.
pub(super) fn mark(frame: &mut [u8]) -> bool {
    let Some((ethernet, ip)) = frame.split_at_mut_checked(ETHERNET) else {
        return false;
    };
    match (&ethernet[12..], &mut *ip) {
        ([0x08, 0x00], [version, class, rest @ ..]) if rest.len() >= 18 => {
            if matches!(*class & CE, NOT_ECT | CE) {
                return false;
            }
            let before = u16::from_be_bytes([*version, *class]);
            *class |= CE;
            let after = u16::from_be_bytes([*version, *class]);
            // RFC 1624 §3: HC' = ~(~HC + ~m + m'); the checksum is at 10 of the header.
            let sum = u16::from_be_bytes([rest[8], rest[9]]);
            let sum: u32 = [!sum, !before, after].map(u32::from).iter().sum();
            let folded = (sum & 0xffff) + (sum >> 16);
            let folded = (folded & 0xffff) + (folded >> 16);
            rest[8..10].copy_from_slice(&(!(folded as u16)).to_be_bytes());
            true
        }
        // The traffic class lies across the first two octets, its ECN bits in the second's middle.
        ([0x86, 0xdd], [_, class, rest @ ..]) if rest.len() >= 38 => {
            if matches!((*class >> 4) & CE, NOT_ECT | CE) {
                return false;
            }
            *class |= CE << 4;
            true
        }
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ipv4(class: u8) -> Vec<u8> {
        let mut frame = vec![0; ETHERNET + 40];
        frame[12..14].copy_from_slice(&[0x08, 0x00]);
        let header = [
            0x45, class, 0, 40, 0x12, 0x34, 0x40, 0, 64, 6, 0, 0, 10, 9, 1, 2, 10, 9, 1, 1,
        ];
        frame[14..34].copy_from_slice(&header);
        let sum = !sum(&frame[14..34]);
        frame[24..26].copy_from_slice(&sum.to_be_bytes());
        frame
    }

    /// RFC 1071: 0xffff over a header whose checksum is right.
    fn sum(header: &[u8]) -> u16 {
        let words = header
            .chunks(2)
            .map(|w| u32::from(w[0]) << 8 | u32::from(w[1]));
        let mut sum: u32 = words.sum();
        while sum > 0xffff {
            sum = (sum & 0xffff) + (sum >> 16);
        }
        sum as u16
    }

    #[test]
    fn only_capable_packets_are_marked_and_their_checksum_stays_right() {
        for class in 0..=255 {
            let mut frame = ipv4(class);
            let before = frame.clone();
            let capable = matches!(class & 3, 1 | 2);
            assert_eq!(mark(&mut frame), capable, "{class:#x}");
            assert_eq!(sum(&frame[14..34]), 0xffff, "{class:#x}");
            if capable {
                assert_eq!(frame[15], class | 3);
            } else {
                assert_eq!(frame, before);
            }
        }
    }

    #[test]
    fn ipv6_is_marked_in_its_traffic_class() {
        for (ecn, marked) in [(0, false), (1, true), (2, true), (3, false)] {
            let mut frame = vec![0; ETHERNET + 40];
            frame[12..16].copy_from_slice(&[0x86, 0xdd, 0x6a, ecn << 4 | 0x5]);
            assert_eq!(mark(&mut frame), marked);
            let now = if marked { 3 } else { ecn };
            assert_eq!(frame[14..16], [0x6a, now << 4 | 0x5]);
        }
    }

    #[test]
    fn what_is_cut_off_or_not_ip_stays_as_it_is() {
        let whole = ipv4(2);
        for length in 0..34 {
            assert!(!mark(&mut whole[..length].to_vec()), "{length}");
        }
        let mut arp = vec![0xff; 60];
        arp[12..14].copy_from_slice(&[0x08, 0x06]);
        assert!(!mark(&mut arp));
    }
}
