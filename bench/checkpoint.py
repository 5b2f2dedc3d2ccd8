"""What a checkpoint costs the program, beside a plain copy and beside files.

Keepers of two nodes on this machine (their link is the loopback), one rank of the given size:
the stall of `save` against memcpy of the same bytes into pre-faulted memory, the time until the
partner's copy is complete against the bytes over what a bare TCP stream moves, and the same state
written with numpy to tmpfs and to disk. Encoding of XOR and Reed-Solomon parity, one core, against
memcpy of the bytes that are read.

    python -m bench.checkpoint [--mib 256] [--rounds 7]
"""

import argparse
import ctypes
import os
import socket
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from fabricctl.state.ckpt import bytes as raw
from fabricctl.state.ckpt.api import Checkpoint
from fabricctl.state.ckpt.erasure import Code
from tests.support.keepers import KeeperSet

GOAL_STALL, GOAL_COPY = 1.25, 1.5


def took(work: Callable[[], object]) -> float:
    begin = time.perf_counter()
    work()
    return time.perf_counter() - begin


def stream_s(size: int) -> float:
    """So many bytes over one TCP connection of the loopback."""
    server = socket.create_server(("127.0.0.1", 0))
    data = memoryview(bytearray(size))

    def receive() -> None:
        made, _ = server.accept()
        into = memoryview(bytearray(4 << 20))
        left = size
        while left:
            left -= made.recv_into(into)
        made.sendall(b"1")
        made.close()

    thread = threading.Thread(target=receive)
    thread.start()
    with socket.create_connection(server.getsockname()) as made:
        begin = time.perf_counter()
        for at in range(0, size, 4 << 20):
            made.sendall(data[at : at + (4 << 20)])
        made.recv(1)
        seconds = time.perf_counter() - begin
    thread.join()
    server.close()
    return seconds


def encode_s(data: np.ndarray, pieces: int, losses: int) -> float:
    """The parity of ``pieces`` equal pieces of the data: each is added to each row."""
    size = data.nbytes // pieces
    code = Code(pieces + losses, losses)
    rows = [memoryview(bytearray(size)) for _ in range(losses)]
    views = [memoryview(data)[at * size : (at + 1) * size] for at in range(pieces)]

    def work() -> None:
        for member, view in enumerate(views):
            for row, into in enumerate(rows):
                raw.add(into, view, code.factor(row, member))

    work()
    return took(work)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--mib", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    size = options.mib << 20
    grid = np.random.default_rng(1).integers(0, 255, size, dtype=np.uint8)
    plain = np.ones_like(grid)
    times: dict[str, list[float]] = {}

    def note(what: str, work: Callable[[], object]) -> None:
        times.setdefault(what, []).append(took(work))

    with (
        tempfile.TemporaryDirectory() as directory,
        KeeperSet(Path(directory), nodes=2, quota_bytes=5 * size) as keepers,
    ):
        os.environ["FABRIC_KEEPER"] = str(keepers.where / "n0")
        checkpoint = Checkpoint(every_steps=1)
        checkpoint.protect(grid=grid).restore()
        for n in range(1, 5):  # until all memory was made once
            checkpoint.save(n)
            checkpoint._commit()
        for n in range(5, 5 + options.rounds):
            copy = lambda: ctypes.memmove(plain.ctypes.data, grid.ctypes.data, size)  # noqa: E731
            note("memcpy", copy)
            begin = time.perf_counter()
            checkpoint.save(n)
            times.setdefault("save", []).append(time.perf_counter() - begin)
            checkpoint._commit()
            times.setdefault("partner", []).append(time.perf_counter() - begin)
            note("stream", lambda: stream_s(size))
            for losses in (1, 2, 3):
                times.setdefault(f"encode {losses}", []).append(encode_s(grid, 6, losses))
        checkpoint.close(done=True)
    for what, place in (("tmpfs", "/dev/shm"), ("disk", ".")):
        with tempfile.TemporaryDirectory(dir=place) as directory:
            path = Path(directory) / "state.npy"

            def write(path: Path = path) -> None:
                np.save(path, grid)
                fd = os.open(path, os.O_RDONLY)
                os.fsync(fd)
                os.close(fd)

            for _ in range(3):
                note(what, write)
    usual = {what: statistics.median(values) for what, values in times.items()}
    print(f"{options.mib} MiB, median of {options.rounds} rounds")
    for what, seconds in usual.items():
        print(f"{what:9} {seconds * 1e3:9.1f} ms  {size / seconds / 1e9:6.2f} GB/s")
    stall, copied = usual["save"] / usual["memcpy"], usual["partner"] / usual["stream"]
    print(f"stall: {stall:.2f} of memcpy (goal {GOAL_STALL})")
    print(f"partner's copy complete: {copied:.2f} of a bare stream (goal {GOAL_COPY})")
    for losses in (1, 2, 3):
        name = "XOR" if losses == 1 else f"RS, {losses} losses"
        share = usual["memcpy"] / usual[f"encode {losses}"]
        print(f"{name}: sets of {6 + losses} are encoded at {share:.2f} of memcpy's rate")
    print(f"np.save: tmpfs {usual['tmpfs'] / usual['save']:.1f}, disk "
          f"{usual['disk'] / usual['save']:.1f} times the stall")  # fmt: skip
    return 0 if stall <= GOAL_STALL and copied <= GOAL_COPY else 1


if __name__ == "__main__":
    sys.exit(main())
