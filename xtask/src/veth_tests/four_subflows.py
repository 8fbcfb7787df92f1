"""Echo over connections that wait until all their subflows are there:
four_subflows.py CONNECTIONS PARALLEL SUBFLOWS BYTES ADDRESS PORT

Each sends BYTES of its own, and on until every subflow has carried data; compares the SHA-256 of what
comes back, and looks whether all subflows are still there. PARALLEL are at it at once, and all stay open:
says "carried" when they are through, and closes them when it gets SIGUSR1. Exits with 1 where anything
was otherwise.
"""

import ctypes
import hashlib
import os
import queue
import random
import select
import signal
import socket
import struct
import sys
import threading
import time

IPPROTO_MPTCP = 262
SOL_MPTCP, MPTCP_TCPINFO = 284, 2
# struct mptcp_subflow_data and, of struct tcp_info, the state and the counts of data segments.
HEADER, TCP_INFO_BYTES = "=IIII", 232
ESTABLISHED, DATA_SEGS_AT = 1, 152
# The client's kernel opens further subflows when the first octets were acknowledged.
FIRST = 1000
# Schedulers prefer the fastest: where a subflow stays idle, more is sent, and then another connection
# takes the place of this one.
MORE, MORE_TIMES, TRIES = 500_000, 10, 4
PATIENCE_S = 20

count, parallel, subflows, size = map(int, sys.argv[1:5])
target = (sys.argv[5], int(sys.argv[6]))
libc = ctypes.CDLL(None, use_errno=True)
signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})


def tcp_infos(connection):
    """Of each subflow its state and the data segments that it has received and sent."""
    header = struct.calcsize(HEADER)
    buffer = ctypes.create_string_buffer(header + 16 * TCP_INFO_BYTES)
    struct.pack_into(HEADER, buffer, 0, header, 0, 0, TCP_INFO_BYTES)
    length = ctypes.c_uint32(len(buffer))
    if libc.getsockopt(connection.fileno(), SOL_MPTCP, MPTCP_TCPINFO, buffer, ctypes.byref(length)):
        error = ctypes.get_errno()
        raise OSError(error, "MPTCP_TCPINFO: " + os.strerror(error))
    number = struct.unpack_from(HEADER, buffer, 0)[1]
    places = [header + TCP_INFO_BYTES * n for n in range(number)]
    return [(buffer.raw[at], *struct.unpack_from("=II", buffer, at + DATA_SEGS_AT)) for at in places]


def carried(info):
    return info[1] + info[2]


def exchange(connection, noise, size):
    """Sends and receives so much and compares the sums."""
    data = memoryview(noise.randbytes(size))
    digest, sent, received = hashlib.sha256(), 0, 0
    poll = select.poll()
    while received < len(data):
        poll.register(connection, select.POLLIN | (select.POLLOUT if sent < len(data) else 0))
        events = poll.poll(PATIENCE_S * 1000)
        if not events:
            raise OSError("nothing moves after %d octets out and %d back" % (sent, received))
        if events[0][1] & select.POLLOUT:
            sent += connection.send(data[sent:sent + 131072])
        if events[0][1] & ~select.POLLOUT:
            piece = connection.recv(131072)
            if not piece:
                raise OSError("the stream ended after %d octets" % received)
            digest.update(piece)
            received += len(piece)
    if digest.digest() != hashlib.sha256(data).digest():
        raise OSError("what came back has another SHA-256")


def open_one(noise):
    """A new connection that has exchanged its data, and whether all its subflows took part."""
    connection = socket.socket(socket.AF_INET, socket.SOCK_STREAM, IPPROTO_MPTCP)
    connection.settimeout(PATIENCE_S)
    connection.connect(target)
    connection.setblocking(False)
    more = 0
    exchange(connection, noise, FIRST)
    end = time.monotonic() + PATIENCE_S
    while [info[0] for info in tcp_infos(connection)] != [ESTABLISHED] * subflows:
        if time.monotonic() > end:
            raise OSError("its subflows: %s" % tcp_infos(connection))
        time.sleep(0.002)
    exchange(connection, noise, size)
    while not all(map(carried, tcp_infos(connection))) and more < MORE_TIMES:
        exchange(connection, noise, MORE)
        more += 1
    infos = tcp_infos(connection)
    if [info[0] for info in infos] != [ESTABLISHED] * subflows:
        raise OSError("subflows ended: %s" % infos)
    return connection, all(map(carried, infos))


def carry(number):
    """A connection whose subflows have all carried data, and those without that."""
    noise, opened = random.Random(number), []
    for _ in range(TRIES):
        connection, complete = open_one(noise)
        opened.append(connection)
        if complete:
            return opened
    raise OSError("%d connections had subflows without data" % TRIES)


def close(connection):
    with connection:
        connection.shutdown(socket.SHUT_WR)
        connection.settimeout(PATIENCE_S)
        if connection.recv(1):
            raise OSError("more came back than was sent")


def in_parallel(work, items):
    """What `work` makes of each; ends the program where it fails."""
    jobs, done, wrong = queue.SimpleQueue(), queue.SimpleQueue(), queue.SimpleQueue()

    def run():
        while True:
            try:
                number, item = jobs.get_nowait()
            except queue.Empty:
                return
            try:
                done.put(work(item))
            except OSError as error:
                wrong.put("connection %d: %s" % (number, error))

    for job in enumerate(items):
        jobs.put(job)
    threads = [threading.Thread(target=run) for _ in range(parallel)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for _ in range(min(wrong.qsize(), 10)):
        print(wrong.get_nowait(), file=sys.stderr)
    if done.qsize() < len(items):
        sys.exit("%d of %d connections" % (done.qsize(), len(items)))
    return [done.get_nowait() for _ in items]


connections = sum(in_parallel(carry, range(count)), [])
print("carried", flush=True)
signal.sigwait({signal.SIGUSR1})
in_parallel(close, connections)
