"""SYNs under VLAN tags, whose answers must bear the same: tags.py DEVICE DESTINATION_MAC SOURCE_MAC

Raw frames, for the kernel may be built without VLAN devices.
"""

import socket
import struct
import sys
import time

DEVICE = sys.argv[1]
MACS = bytes.fromhex("".join(sys.argv[2:4]).replace(":", ""))
CLIENT, SERVER, PORT = (
    socket.inet_aton("10.9.1.1"), socket.inet_aton("10.9.1.2"), 7,
)
SYN, RST = 2, 4
SOL_PACKET, PACKET_AUXDATA, TP_STATUS_VLAN_VALID = 263, 8, 0x10
raw = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))
raw.bind((DEVICE, 0))
# The kernel takes the outer tag off a received frame and tells it here.
raw.setsockopt(SOL_PACKET, PACKET_AUXDATA, 1)
raw.settimeout(1)


def checksum(data):
    total = sum(struct.unpack("!%dH" % (len(data) // 2), data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return struct.pack("!H", ~total & 0xFFFF)


def send(tags, port, flags, seq):
    tcp = struct.pack("!HHIIBBHHH", port, PORT, seq, 0, 5 << 4, flags, 65535, 0, 0)
    pseudo = struct.pack("!4s4sBBH", CLIENT, SERVER, 0, 6, len(tcp))
    tcp = tcp[:16] + checksum(pseudo + tcp) + tcp[18:]
    ip = struct.pack("!BBHHHBBH4s4s", 0x45, 0, 40, 1, 0, 64, 6, 0, CLIENT, SERVER)
    ip = ip[:10] + checksum(ip) + ip[12:]
    tags = b"".join(struct.pack("!HH", *tag) for tag in tags)
    raw.send(MACS + tags + b"\x08\x00" + ip + tcp)


def answer_tags(port):
    deadline = time.monotonic() + 2
    while time.monotonic() < deadline:
        frame, ancillary, _, address = raw.recvmsg(2000, 256)
        if address[2] == socket.PACKET_OUTGOING:
            continue
        tags, at = [], 12
        for level, kind, data in ancillary:
            if (level, kind) == (SOL_PACKET, PACKET_AUXDATA):
                status, _, _, _, _, tci, tpid = struct.unpack("IIIHHHH", data)
                if status & TP_STATUS_VLAN_VALID:
                    tags.append((tpid, tci))
        while frame[at:at + 2] in (b"\x81\x00", b"\x88\xa8"):
            tags.append(struct.unpack("!HH", frame[at:at + 4]))
            at += 4
        if frame[at + 22:at + 26] == struct.pack("!HH", PORT, port):
            return tags
    return None


STACKS = [[(0x8100, 5)], [(0x88A8, 0x2007), (0x8100, 8)]]
for port, tags in enumerate(STACKS, 40000):
    send(tags, port, SYN, 1)
    answered = answer_tags(port)
    send(tags, port, RST, 2)
    if answered != tags:
        sys.exit(f"sent under {tags}, answered under {answered}")
# One tag more than is followed belongs to the kernel.
send([(0x8100, 1), (0x8100, 2), (0x8100, 3)], 40010, SYN, 1)
