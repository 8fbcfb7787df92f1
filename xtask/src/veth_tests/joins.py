"""SYNs with an MP_JOIN, forged.

joins.py ADDRESS: of a token that nobody has, to see who answers. Each line of the input is PORT LENGTH, of
which LENGTH is that of the option. Prints a line for each: the flags of the answer, or "nothing".

joins.py ADDRESS PORT FILE: connects to the kernel's echo server at PORT and to mpxd's at port 7, forges a
join of the latter's token, which FILE will have, from where the former's client is, and sees that the
former goes on.
"""

import os
import socket
import struct
import sys
import time

CLIENT, SERVER = "10.9.1.1", sys.argv[1]
IPPROTO_MPTCP = 262
raw = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_TCP)
raw.bind((CLIENT, 0))
raw.settimeout(0.1)


def checksum(data):
    total = sum(struct.unpack("!%dH" % (len(data) // 2), data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return struct.pack("!H", ~total & 0xFFFF)


def join(source, port, length, token):
    option = struct.pack("!BBBBI", 30, length, 0x10, 1, token) + bytes(length - 8)
    option += bytes(-len(option) % 4)
    words = (20 + len(option)) // 4
    tcp = struct.pack("!HHIIBBHHH", source, port, 1, 0, words << 4, 2, 65535, 0, 0) + option
    ends = socket.inet_aton(CLIENT) + socket.inet_aton(SERVER)
    sum_ = checksum(ends + struct.pack("!BBH", 0, 6, len(tcp)) + tcp)
    raw.sendto(tcp[:16] + sum_ + tcp[18:], (SERVER, 0))


def answer(source, port, length):
    join(source, port, length, 0x12345678)
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


def echo(connection, text):
    connection.sendall(text)
    got = b""
    while len(got) < len(text) and (more := connection.recv(1024)):
        got += more
    if got != text:
        sys.exit(f"{got!r} came back, not {text!r}")


def forge(port, file):
    kernel = socket.create_connection((SERVER, port), 10, (CLIENT, 0))
    ours = socket.socket(socket.AF_INET, socket.SOCK_STREAM, IPPROTO_MPTCP)
    ours.settimeout(10)
    ours.connect((SERVER, 7))
    for connection in kernel, ours:
        echo(connection, b"before")
    print("ready", flush=True)
    end = time.time() + 10
    while not os.path.exists(file):
        if time.time() > end:
            sys.exit("there is no token")
        time.sleep(0.01)
    with open(file) as text:
        join(kernel.getsockname()[1], port, 12, int(text.read(), 16))
    # Its answer is here before that of mpxd's echo.
    echo(ours, b"after")
    for _ in range(5):
        echo(kernel, b"after")
        time.sleep(0.1)


if len(sys.argv) > 2:
    forge(int(sys.argv[2]), sys.argv[3])
else:
    for number, line in enumerate(sys.stdin.read().split("\n")):
        if line:
            port, length = map(int, line.split())
            print(line, answer(40000 + number, port, length))
