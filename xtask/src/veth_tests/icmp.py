"""Pings the server and sends it ICMP errors about segments of its port: icmp.py PORT"""

import socket
import struct
import sys

PORT = int(sys.argv[1])
FAMILIES = [
    (socket.AF_INET, socket.IPPROTO_ICMP, "10.9.1.1", "10.9.1.2", 8, 0, bytes([3, 4])),
    (socket.AF_INET6, socket.IPPROTO_ICMPV6, "fd00:9:1::1", "fd00:9:1::2", 128, 129, bytes([2, 0])),
]


def checksum(data):
    total = sum(struct.unpack("!%dH" % (len(data) // 2), data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return struct.pack("!H", ~total & 0xFFFF)


def summed(message, family):
    # The kernel sums ICMPv6 itself.
    if family == socket.AF_INET6:
        return message
    return message[:2] + checksum(message) + message[4:]


for family, protocol, here, server, echo, reply, too_big in FAMILIES:
    raw = socket.socket(family, socket.SOCK_RAW, protocol)
    raw.settimeout(2)
    raw.sendto(summed(struct.pack("!BBHHH", echo, 0, 0, 77, 1) + b"ping", family), (server, 0))
    while True:
        message, sender = raw.recvfrom(2000)
        if family == socket.AF_INET:
            message = message[20:]
        if sender[0] == server and message[0] == reply and message[8:] == b"ping":
            break

    ends = socket.inet_pton(family, server) + socket.inet_pton(family, here)
    if family == socket.AF_INET:
        quoted = struct.pack("!BBHHHBBH", 0x45, 0, 1500, 0, 0x4000, 60, 6, 0) + ends
        mtu = struct.pack("!HHH", 0, 0, 1300)
    else:
        quoted = struct.pack("!IHBB", 6 << 28, 1460, 6, 60) + ends
        mtu = struct.pack("!HI", 0, 1300)
    tcp = struct.pack("!HHI", PORT, 40000, 1)
    raw.sendto(summed(too_big + mtu + quoted + tcp, family), (server, 0))
