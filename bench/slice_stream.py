"""Floods and small exchanges over TCP, for bench/slice.py; runs on the lab's nodes.

slice_stream.py sink ADDRESS PORT               counts what arrives, second by second
slice_stream.py flood ADDRESS PORT --streams N
slice_stream.py echo ADDRESS PORT
slice_stream.py ping ADDRESS PORT               times 64 bytes there and back

Reno, which everybody may choose, fills queues as Linux's default CUBIC does.
"""

import argparse
import json
import selectors
import socket
import threading
import time

BLOCK = bytes(1 << 18)
PING = bytes(64)
PING_EVERY_S = 0.002


def tcp() -> socket.socket:
    made = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    made.setsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, b"reno")
    made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return made


def listen(args: argparse.Namespace) -> socket.socket:
    listener = tcp()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind((args.address, args.port))
    listener.listen(64)
    print("listening", flush=True)
    return listener


def sink(args: argparse.Namespace) -> None:
    """Ends --seconds after the first stream came; of each tenth of a second since then: bytes."""
    listener = listen(args)
    chosen = selectors.DefaultSelector()
    chosen.register(listener, selectors.EVENT_READ)
    buffer = bytearray(1 << 20)
    begin, counts = 0.0, [0] * (int(args.seconds * 10) + 1)
    while not begin or time.monotonic() - begin < args.seconds:
        for key, _ in chosen.select(0.1):
            if key.fileobj is listener:
                stream, _ = listener.accept()
                chosen.register(stream, selectors.EVENT_READ)
                begin = begin or time.monotonic()
                continue
            assert isinstance(key.fileobj, socket.socket)
            got = key.fileobj.recv_into(buffer)
            counts[min(len(counts) - 1, int((time.monotonic() - begin) * 10))] += got
            if not got:
                chosen.unregister(key.fileobj)
    print(json.dumps({"begin_mono_s": begin, "bytes": counts[:-1]}), flush=True)


def flood(args: argparse.Namespace) -> None:
    end = time.monotonic() + args.seconds

    def one() -> None:
        with tcp() as stream:
            stream.connect((args.address, args.port))
            try:
                while time.monotonic() < end:
                    stream.sendall(BLOCK)
            except OSError:
                return  # the sink has seen enough

    threads = [threading.Thread(target=one) for _ in range(args.streams)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def exactly(stream: socket.socket, size: int) -> bytes:
    parts = b""
    while len(parts) < size:
        got = stream.recv(size - len(parts))
        if not got:
            raise EOFError
        parts += got
    return parts


def echo(args: argparse.Namespace) -> None:
    stream, _ = listen(args).accept()
    stream.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    try:
        while True:
            stream.sendall(exactly(stream, len(PING)))
    except EOFError:
        return


def ping(args: argparse.Namespace) -> None:
    times = []
    with tcp() as stream:
        stream.connect((args.address, args.port))
        end = time.monotonic() + args.seconds
        while time.monotonic() < end:
            begin = time.monotonic_ns()
            stream.sendall(PING)
            exactly(stream, len(PING))
            times.append((begin, time.monotonic_ns() - begin))
            time.sleep(PING_EVERY_S)
    print(json.dumps({"exchanges_ns": times}), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("what", choices=("sink", "flood", "echo", "ping"))
    parser.add_argument("address")
    parser.add_argument("port", type=int)
    parser.add_argument("--streams", type=int, default=4)
    parser.add_argument("--seconds", type=float, default=10)
    args = parser.parse_args()
    {"sink": sink, "flood": flood, "echo": echo, "ping": ping}[args.what](args)


if __name__ == "__main__":
    main()
