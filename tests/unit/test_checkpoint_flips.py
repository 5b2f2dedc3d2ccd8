"""A thousand flipped bits, in what is stored, sent and replicated: every one is found."""

import json
import random
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from fabricctl.errors import DataError, FabricError
from fabricctl.state.ckpt import bytes as raw
from fabricctl.state.ckpt import partfile
from fabricctl.state.ckpt.holding import Holding
from fabricctl.state.ckpt.link import Link
from fabricctl.state.ckpt.parity import Known
from fabricctl.state.ckpt.parts import Part

KEY, NONCE = b"k" * 32, bytes(32)


def flip(data: bytearray | memoryview, rng: random.Random) -> Callable[[], None]:
    """One bit; what takes it back."""
    at, bit = rng.randrange(len(data)), 1 << rng.randrange(8)

    def turn() -> None:
        data[at] ^= bit

    turn()
    return turn


def part_of(holding: Holding, rng: random.Random, size: int = 20_000) -> Part:
    part = holding.parts.room(("main", 3, 7), 8, size, set())
    state = rng.randbytes(size)
    part.used = size
    part.view[:] = state
    part.crc = raw.crc(memoryview(state))
    part.describe(json.dumps([["grid", "buffer", 0, size, part.crc, None]]).encode())
    part.whole = True
    return part


def test_400_flips_in_keepers_memory(tmp_path: Path) -> None:
    """In parts, their descriptions, and what is known of a lost member's part."""
    rng = random.Random(11)
    holding = Holding(1 << 24, None)
    part = part_of(holding, rng)
    assert part.good
    for _ in range(300):
        back = flip(part.view, rng)
        assert not part.good
        back()
    for _ in range(80):
        told = bytearray(part.manifest)
        flip(told, rng)
        part.manifest, good = bytes(told), part.manifest
        assert not part.good and not part.described
        part.manifest = good
    known = Known.of(20_000, part.crc, part.manifest.decode())
    assert known.good
    for _ in range(20):
        used, crc = known.used ^ 1 << rng.randrange(40), known.crc ^ 1 << rng.randrange(32)
        assert not Known(used, known.crc, known.manifest, known.seal).good
        assert not Known(known.used, crc, known.manifest, known.seal).good
    assert part.good
    flip(part.view, rng)
    with pytest.raises(DataError, match="checksum"):
        holding.check(part)
    assert holding.parts.get("main", 3, 7) is None, "it is not offered again"


def test_300_flips_on_the_way(tmp_path: Path) -> None:
    """Anywhere in a frame: its length, its seal, its fields, its payload."""
    rng = random.Random(12)
    payload = rng.randbytes(3000)
    ours, theirs = socket.socketpair()
    whole = bytearray()
    with theirs:
        with ours:
            Link(ours, KEY, NONCE).send({"kind": "hold", "rank": "3"}, memoryview(payload))
        while data := theirs.recv(65536):
            whole += data
    assert _taken(bytes(whole)) == payload
    for _ in range(300):
        back = flip(whole, rng)
        with pytest.raises((OSError, FabricError)):
            _taken(bytes(whole))
        back()


def _taken(stream: bytes) -> bytes:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.sendall(stream)
        ours.shutdown(socket.SHUT_WR)
        link = Link(theirs, KEY, NONCE)
        return link.small(link.receive())


def test_300_flips_in_files(tmp_path: Path) -> None:
    """Of the levels on disk and on the shared file system."""
    rng = random.Random(13)
    part = part_of(Holding(1 << 24, None), rng, 2000)
    manifest = json.loads(part.manifest)
    head = partfile.Head("main", 3, 8, 7, part.used, part.crc, manifest)
    partfile.write(tmp_path, head, [part.view])
    path = partfile.place(tmp_path, "main", 3, 8, 7)
    assert partfile.read(path) == (head, part.view)
    whole = bytearray(path.read_bytes())
    for _ in range(300):
        back = flip(whole, rng)
        path.write_bytes(whole)
        with pytest.raises((OSError, DataError)):
            partfile.read(path)
        back()
