//! A router that could not forward a frame.

use super::ones_complement;

const ETHERNET_LEN: usize = 14;
const IPV4_LEN: usize = 20;
const IPV6_LEN: usize = 40;
/// RFC 792: what is quoted at least, behind the IP header.
const QUOTED_V4: usize = 8;
/// RFC 4443 §3.2: as much as fits in the minimum MTU.
const QUOTED_V6: usize = 1280 - IPV6_LEN - 8;

/// The error about `frame`, which is larger than `mtu`, to the one who sent it. IPv4: RFC 1191 §4;
/// IPv6: RFC 4443 §3.2.
pub fn too_big(frame: &[u8], mtu: usize) -> Vec<u8> {
    let packet = &frame[ETHERNET_LEN..];
    let v6 = packet[0] >> 4 == 6;
    let quoted = if v6 {
        &packet[..packet.len().min(QUOTED_V6)]
    } else {
        &packet[..IPV4_LEN + QUOTED_V4]
    };
    let mut icmp = if v6 {
        vec![2, 0, 0, 0, 0, 0]
    } else {
        vec![3, 4, 0, 0, 0, 0]
    };
    icmp.extend((mtu as u16).to_be_bytes());
    icmp.extend(quoted);
    let mut ip = Vec::new();
    if v6 {
        ip.extend([0x60, 0, 0, 0]);
        ip.extend((icmp.len() as u16).to_be_bytes());
        ip.extend([58, 64]);
        ip.extend([0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 99]);
        ip.extend(&packet[8..24]);
        let mut summed = ip[8..40].to_vec();
        summed.extend((icmp.len() as u32).to_be_bytes());
        summed.extend([0, 0, 0, 58]);
        summed.extend(&icmp);
        let sum = !ones_complement(&summed);
        icmp[2..4].copy_from_slice(&sum.to_be_bytes());
    } else {
        ip.extend([0x45, 0]);
        ip.extend(((IPV4_LEN + icmp.len()) as u16).to_be_bytes());
        ip.extend([0, 0, 0, 0, 64, 1, 0, 0, 10, 99, 99, 99]);
        ip.extend(&packet[12..16]);
        let sum = !ones_complement(&ip);
        ip[10..12].copy_from_slice(&sum.to_be_bytes());
        let sum = !ones_complement(&icmp);
        icmp[2..4].copy_from_slice(&sum.to_be_bytes());
    }
    let ethernet = [&frame[6..12], &frame[..6], &frame[12..14]].concat();
    [ethernet, ip, icmp].concat()
}
