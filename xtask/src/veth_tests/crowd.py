"""Opens idle MPTCP connections and stays: crowd.py CONNECTIONS ADDRESS PORT"""

import signal
import socket
import sys

IPPROTO_MPTCP = 262
crowd = []
for _ in range(int(sys.argv[1])):
    connection = socket.socket(socket.AF_INET, socket.SOCK_STREAM, IPPROTO_MPTCP)
    connection.settimeout(10)
    connection.connect((sys.argv[2], int(sys.argv[3])))
    crowd.append(connection)
print("ready", flush=True)
signal.pause()
