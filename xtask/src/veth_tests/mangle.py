"""Raw frames that no proper stack sends: mangle.py DEVICE DESTINATION_MAC SOURCE_MAC"""

import random
import socket
import struct
import sys

DEVICE = sys.argv[1]
MACS = bytes.fromhex("".join(sys.argv[2:4]).replace(":", ""))
SOURCE, SERVER, PORT = "10.9.1.1", "10.9.1.2", 80
raw = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
raw.bind((DEVICE, 0))
random.seed(8684)
sent = 0


def send(packet, ethertype=0x0800):
    global sent
    raw.send(MACS + struct.pack("!H", ethertype) + packet)
    sent += 1


def checksum(data):
    data += b"\0" * (len(data) % 2)
    total = sum(struct.unpack("!%dH" % (len(data) // 2), data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def ipv4(payload, fragment=0, protocol=6, ihl=5, total=None, version=4):
    length = 20 + len(payload) if total is None else total
    header = struct.pack(
        "!BBHHHBBH4s4s",
        version << 4 | ihl, 0, length, 1, fragment, 64, protocol, 0,
        socket.inet_aton(SOURCE), socket.inet_aton(SERVER),
    )
    return header[:10] + struct.pack("!H", checksum(header)) + header[12:] + payload


def tcp(flags, offset=5, options=b"", data=b"", good=True, seq=1, ack=1):
    port = random.randrange(1024, 65536)
    header = struct.pack(
        "!HHIIBBHHH", port, PORT, seq, ack, offset << 4, flags, 65535, 0, 0
    ) + options + data
    pseudo = struct.pack(
        "!4s4sBBH", socket.inet_aton(SOURCE), socket.inet_aton(SERVER), 0, 6, len(header)
    )
    value = checksum(pseudo + header) if good else 0xDEAD
    return header[:16] + struct.pack("!H", value) + header[18:]


SYN, ACK, RST, FIN = 2, 16, 4, 1
for _ in range(20):
    # A fragment that starts a segment, one that continues it, one too short for its ports.
    send(ipv4(tcp(SYN), fragment=0x2000))
    send(ipv4(b"x" * 64, fragment=0x0008))
    send(ipv4(tcp(SYN)[:3], fragment=0x2000))
    # Runts, and lengths that lie.
    for cut in (1, 10, 19, 21, 24, 39):
        send(ipv4(tcp(SYN))[:cut])
    send(ipv4(tcp(SYN), total=1400))
    send(ipv4(tcp(SYN), total=10))
    send(ipv4(tcp(SYN), ihl=15))
    send(ipv4(tcp(SYN), ihl=2))
    send(ipv4(tcp(SYN), version=6))
    # TCP headers that lie, flags that contradict each other, wrong checksums.
    send(ipv4(tcp(SYN, offset=15)))
    send(ipv4(tcp(SYN, offset=3)))
    send(ipv4(tcp(SYN | FIN | RST | ACK)))
    send(ipv4(tcp(0)))
    send(ipv4(tcp(SYN, good=False)))
    # Options without a length, with length 0, longer than the header; MPTCP ones cut short.
    for options in (b"\x1e\x00\0\0", b"\x1e\xff\x01\0", b"\x02\x01\0\0", b"\x1e\x04\x10\x00"):
        send(ipv4(tcp(SYN, offset=6, options=options)))
        send(ipv4(tcp(ACK, offset=6, options=options, data=b"data")))
    # A join to a connection that never was.
    join = b"\x1e\x0c\x10\x01" + random.randbytes(8)
    send(ipv4(tcp(SYN, offset=8, options=join)))
    # Noise behind a proper header.
    send(ipv4(random.randbytes(random.randrange(20, 1400))))
    send(random.randbytes(random.randrange(20, 1400)))
    send(random.randbytes(random.randrange(20, 1400)), 0x86DD)
    send(random.randbytes(random.randrange(4, 60)), 0x8100)
# Full-sized noise: the largest frame that the device takes.
send(ipv4(tcp(ACK, data=b"y" * (1500 - 40))))
print(sent, "frames")
