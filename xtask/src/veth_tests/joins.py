"""SYNs with an MP_JOIN of a token that nobody has, to see who answers: joins.py ADDRESS

Each is PORT LENGTH, of which LENGTH is that of the option. Prints a line for each: the flags of the
answer, or "nothing".
"""

import socket
import struct
import sys
import time

CLIENT, SERVER = "10.9.1.1", sys.argv[1]
raw = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_TCP)
raw.bind((CLIENT, 0))
raw.settimeout(0.1)


def checksum(data):
    total = sum(struct.unpack("!%dH" % (len(data) // 2), data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return struct.pack("!H", ~total & 0xFFFF)


def answer(source, port, length):
    option = bytes([30, length, 0x10, 1]) + b"\x12\x34\x56\x78" + bytes(length - 8)
    option += bytes(-len(option) % 4)
    words = (20 + len(option)) // 4
    tcp = struct.pack("!HHIIBBHHH", source, port, 1, 0, words << 4, 2, 65535, 0, 0) + option
    ends = socket.inet_aton(CLIENT) + socket.inet_aton(SERVER)
    sum_ = checksum(ends + struct.pack("!BBH", 0, 6, len(tcp)) + tcp)
    raw.sendto(tcp[:16] + sum_ + tcp[18:], (SERVER, 0))
    end = time.time() + 1.5
    while time.time() < end:
        try:
            packet = raw.recv(2048)
        except socket.timeout:
            continue
        tcp = packet[(packet[0] & 15) * 4:]
        if struct.unpack("!HH", tcp[:4]) == (port, source):
            return "%#04x" % tcp[13]
    return "nothing"


for number, line in enumerate(sys.stdin.read().split("\n")):
    if line:
        port, length = map(int, line.split())
        print(line, answer(40000 + number, port, length))
