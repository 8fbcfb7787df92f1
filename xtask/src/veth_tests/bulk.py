"""Connects, waits for SIGUSR1, sends and closes: bulk.py ADDRESS PORT BYTES"""

import signal
import socket
import sys

signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})
connection = socket.create_connection((sys.argv[1], int(sys.argv[2])), timeout=10)
print("connected", flush=True)
signal.sigwait({signal.SIGUSR1})
connection.settimeout(60)
left = int(sys.argv[3])
chunk = bytes(65536)
while left > 0:
    left -= connection.send(chunk[:left])
connection.shutdown(socket.SHUT_WR)
# The server closes when it has taken everything in.
while connection.recv(4096):
    pass
