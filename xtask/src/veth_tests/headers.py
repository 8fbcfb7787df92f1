"""Echoes over TCP with IPv4 options or IPv6 extension headers on every segment."""

import socket
import sys
import threading

PADDING = bytes([0, 0, 1, 4, 0, 0, 0, 0])
CASES = [
    ("IPv4 options", socket.AF_INET, "10.9.1.2", socket.IPPROTO_IP, socket.IP_OPTIONS, bytes([1]) * 40),
    ("hop-by-hop", socket.AF_INET6, "fd00:9:1::2", socket.IPPROTO_IPV6, socket.IPV6_HOPOPTS, PADDING),
    ("destination options", socket.AF_INET6, "fd00:9:1::2", socket.IPPROTO_IPV6, socket.IPV6_DSTOPTS, PADDING),
]
SENT = bytes(index % 251 for index in range(300000))

for name, family, address, level, option, value in CASES:
    with socket.socket(family, socket.SOCK_STREAM) as connection:
        connection.settimeout(10)
        connection.setsockopt(level, option, value)
        connection.connect((address, 7))

        def send():
            connection.sendall(SENT)
            connection.shutdown(socket.SHUT_WR)

        sender = threading.Thread(target=send)
        sender.start()
        received = b""
        while chunk := connection.recv(65536):
            received += chunk
        sender.join()
        if received != SENT:
            sys.exit(f"{name}: {len(received)} bytes came back wrong")
