"""Checked request and reply over one TCP stream, for bench/failover.py; runs on the lab's nodes.

Each side sends a block of random bytes with its number and CRC and gets it back: a byte lost,
doubled, changed or out of order ends the run with an error. What is measured is the time from one
completed exchange to the next, on CLOCK_MONOTONIC (one clock for all nodes of the lab).

    failover_stream.py serve ADDRESS PORT [--mptcp]
    failover_stream.py ask ADDRESS PORT --bind ADDRESS --seconds S [--block BYTES] [--mptcp]
"""

import argparse
import json
import os
import socket
import struct
import sys
import time
import zlib

HEAD = struct.Struct("<QII")  # number, size, crc32
WAIT_NS = 200_000  # for a core, of one block: shorter ones are not told
MPTCP = 262  # IPPROTO_MPTCP, linux/in.h


class Runqueue:
    """How long this process has waited for a core: /proc/[pid]/schedstat, the second number."""

    def __init__(self) -> None:
        self._fd = os.open("/proc/self/schedstat", os.O_RDONLY)
        self._last_ns = 0
        self.since_ns()

    def since_ns(self) -> int:
        """Since the call before."""
        now_ns = int(os.pread(self._fd, 64, 0).split()[1])
        since_ns, self._last_ns = now_ns - self._last_ns, now_ns
        return since_ns


def receive(stream: socket.socket, size: int) -> bytes:
    parts = bytearray(size)
    view, at = memoryview(parts), 0
    while at < size:
        got = stream.recv_into(view[at:])
        if not got:
            raise EOFError
        at += got
    return bytes(parts)


def receive_block(stream: socket.socket, number: int) -> bytes:
    head = receive(stream, HEAD.size)
    got, size, crc = HEAD.unpack(head)
    body = receive(stream, size)
    if got != number or zlib.crc32(body) != crc:
        raise SystemExit(f"stream: block {number} arrived as {got}, crc {zlib.crc32(body) == crc}")
    return head + body


def open_socket(address: str, mptcp: bool) -> socket.socket:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    made = socket.socket(family, socket.SOCK_STREAM, MPTCP if mptcp else socket.IPPROTO_TCP)
    made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return made


def serve(args: argparse.Namespace) -> None:
    listener = open_socket(args.address, args.mptcp)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind((args.address, args.port))
    listener.listen()
    listener.settimeout(args.seconds + 30)
    print("listening", flush=True)
    stream, _ = listener.accept()
    stream.settimeout(60)
    stream.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    number = 0
    queue, waits = Runqueue(), []
    try:
        while True:
            stream.sendall(receive_block(stream, number))
            number += 1
            if (waited_ns := queue.since_ns()) > WAIT_NS:
                waits.append((time.monotonic_ns(), waited_ns))
    except EOFError:
        print(json.dumps({"blocks": number, "waits": waits}), flush=True)


def ask(args: argparse.Namespace) -> None:
    stream = open_socket(args.address, args.mptcp)
    if args.bind:
        stream.bind((args.bind, 0))
    stream.settimeout(60)
    stream.connect((args.address, args.port))
    protocol = stream.getsockopt(socket.SOL_SOCKET, socket.SO_PROTOCOL)
    body = os.urandom(args.block)
    crc, number = zlib.crc32(body), 0
    begin = last = time.monotonic_ns()
    gaps: list[tuple[int, int, int]] = []
    queue = Runqueue()
    while last - begin < args.seconds * 1e9:
        queue.since_ns()
        stream.sendall(HEAD.pack(number, len(body), crc) + body)
        receive_block(stream, number)
        now = time.monotonic_ns()
        gaps.append((last, now - last, queue.since_ns()))
        last, number = now, number + 1
        if args.pause:
            time.sleep(args.pause)
            last = time.monotonic_ns()
    stream.close()
    long = sorted(gaps, key=lambda gap: -gap[1])[: args.keep]
    middle = sorted(gap[1] for gap in gaps)[len(gaps) // 2]
    print(json.dumps({
        "blocks": number, "protocol": protocol, "median_ns": middle,
        "rate_bytes_per_s": number * args.block / ((last - begin) / 1e9),
        "longest": [
            {"begin_mono_ns": at, "gap_ns": gap, "waited_ns": waited} for at, gap, waited in long
        ],
    }), flush=True)  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("what", choices=("serve", "ask"))
    parser.add_argument("address")
    parser.add_argument("port", type=int)
    parser.add_argument("--bind")
    parser.add_argument("--seconds", type=float, default=10)
    parser.add_argument("--block", type=int, default=65536)
    parser.add_argument("--pause", type=float, default=0)
    parser.add_argument("--keep", type=int, default=200)
    parser.add_argument("--mptcp", action="store_true")
    args = parser.parse_args()
    (serve if args.what == "serve" else ask)(args)


if __name__ == "__main__":
    sys.exit(main())
