"""The probe engine on the loopback interface, its seals and its replay protection."""

import os
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from fabricctl.clock import probing
from fabricctl.clock.probing import Flow, Prober, Rail, Virtual
from fabricctl.errors import SystemRefusedError

engine = pytest.importorskip("fabricctl.clock._engine", reason="built without a C compiler")
KEY = bytes(range(16))
LOOPBACK = Rail("lo", "127.0.0.1")


def prober(me: int, key: bytes = KEY) -> Prober:
    return Prober(me, 1_000 + me, key, [LOOPBACK])


def joined(a: Prober, b: Prober) -> None:
    a.set_flows([Flow(0, 2, "127.0.0.1", b.ports[0], True)])
    b.set_flows([Flow(0, 1, "127.0.0.1", a.ports[0], False)])


@pytest.fixture
def two() -> Iterator[tuple[Prober, Prober]]:
    a, b = prober(1), prober(2)
    joined(a, b)
    yield a, b
    a.stop()
    b.stop()


def wait_for(ready: object, seconds: float = 60.0) -> None:
    assert callable(ready)
    end = time.monotonic() + seconds
    while not ready():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.01)


def taken(a: Prober, least: int) -> np.ndarray:
    """Samples, as many at least."""
    parts: list[np.ndarray] = []

    def enough() -> bool:
        parts.append(a.take())
        return sum(map(len, parts)) >= least

    wait_for(enough)
    return np.concatenate(parts)


def test_siphash_gives_the_values_of_its_paper() -> None:
    # Appendix A of the paper, and the first of the authors' vectors (vectors_sip64).
    assert engine.siphash(KEY, bytes(range(15))) == 0xA129CA6149BE45E5
    assert engine.siphash(KEY, b"") == 0x726FDB47DD0E0E31
    assert engine.siphash(KEY, bytes(range(8))) == 0x93F5F5799A932462


def test_stamps_of_both_ends_become_samples_at_the_owner(two: tuple[Prober, Prober]) -> None:
    a, b = two
    a.start(200)
    b.start(200)
    seen = taken(a, 101)
    assert len(b.take()) == 0  # b does not own the edge
    assert {0, 1} == set(seen["inbound"])
    assert (seen["peer"] == 2).all()
    delay = seen["received_ns"] - seen["sent_ns"]
    assert (delay > 0).all()  # one clock: nothing arrives before it was sent
    assert np.median(delay) < 1_000_000
    assert set(seen["sent_source"]) == {3}
    pairs = [set(zip(seen["inbound"], seen["seq"], strict=True))]
    assert len(pairs[0]) == len(seen)  # each packet once


def test_counters_agree_when_nothing_is_lost(two: tuple[Prober, Prober]) -> None:
    a, b = two
    a.start(100)
    b.start(100)
    wait_for(lambda: b.counters()[0]["arrived"].sum() > 100)
    counted = b.counters()[0]
    assert counted["peer"] == 1
    assert counted["arrived"].sum() > 40
    assert (counted["arrived"] == counted["expected"]).all()
    assert counted["arrived"][0] > 20 * counted["arrived"][2]  # few of the MTU
    assert (counted["duplicates"], counted["reordered"], counted["tagless"]) == (0, 0, 0)


def test_probes_under_another_key_are_not_taken() -> None:
    a, b = prober(1), prober(2, key=bytes(16))
    joined(a, b)
    a.start(200)
    b.start(200)
    wait_for(lambda: a.counters()[0]["tagless"] > 5)
    assert a.counters()[0]["heard"] == 0
    assert len(a.take()) == 0
    a.stop()
    b.stop()


class Eavesdropper:
    """Stands in for node 2 towards the prober ``a``, holding what was sent to it."""

    def __init__(self) -> None:
        self.socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.socket.bind(("127.0.0.1", 0))
        self.socket.settimeout(2)
        self.port = self.socket.getsockname()[1]

    def probe(self, to_session: int, seq: int, session: int = 2_002) -> bytes:
        head = struct.pack("<IB3xIIQQI", 0x31434246, 0, 2, 1, session, to_session, seq)
        body = head.ljust(engine.PROBE_BYTES - 8, b"\0")
        return body + struct.pack("<Q", engine.siphash(KEY, body))


@pytest.fixture
def tapped() -> Iterator[tuple[Prober, Eavesdropper]]:
    a, ear = prober(1), Eavesdropper()
    a.set_flows([Flow(0, 2, "127.0.0.1", ear.port, True)])
    a.start(200)
    yield a, ear
    a.stop()
    ear.socket.close()


def send(a: Prober, ear: Eavesdropper, datagram: bytes, *, counts: bool = True) -> None:
    """``counts``: it will show in some counter; until then is waited."""
    before, read = counted_all(a), a._engine.state()[0]
    ear.socket.sendto(datagram, ("127.0.0.1", a.ports[0]))
    if counts:
        wait_for(lambda: counted_all(a) > before)
    else:
        wait_for(lambda: a._engine.state()[0] >= read + 2)


def counted_all(a: Prober) -> int:
    now = counters(a)
    return int(now["arrived"].sum() + now["refused"] + now["tagless"])


def counters(a: Prober) -> np.void:
    return a.counters()[0]


def test_a_session_counts_only_once_it_names_ours(tapped: tuple[Prober, Eavesdropper]) -> None:
    a, ear = tapped
    send(a, ear, ear.probe(to_session=0, seq=2), counts=False)
    assert counters(a)["heard"] == 0
    send(a, ear, ear.probe(to_session=1_001, seq=4))
    assert counters(a)["heard"] == 1
    recording = ear.probe(to_session=999, seq=6, session=3_003)  # of another life
    send(a, ear, recording, counts=False)
    assert counters(a)["arrived"].sum() == 1


def test_a_copied_probe_is_refused(tapped: tuple[Prober, Eavesdropper]) -> None:
    a, ear = tapped
    first = ear.probe(to_session=1_001, seq=10)
    for datagram in (first, first, ear.probe(1_001, 12), ear.probe(1_001, 11), first):
        send(a, ear, datagram)
    counted = counters(a)
    assert counted["arrived"].sum() == 3
    assert counted["refused"] == 2
    assert counted["reordered"] == 1


def test_a_changed_probe_is_refused(tapped: tuple[Prober, Eavesdropper]) -> None:
    a, ear = tapped
    good = ear.probe(to_session=1_001, seq=2)
    for at in (5, 20, 36, 100, engine.PROBE_BYTES - 1):
        bad = bytearray(good)
        bad[at] ^= 1
        send(a, ear, bytes(bad))
    send(a, ear, good[:-1], counts=False)
    send(a, ear, b"", counts=False)
    assert counters(a)["heard"] == 0
    assert counters(a)["tagless"] == 5


def test_lost_probes_are_counted_by_size(tapped: tuple[Prober, Eavesdropper]) -> None:
    a, ear = tapped
    send(a, ear, ear.probe(1_001, 2))
    send(a, ear, ear.probe(1_001, 66))  # 62 and 63 would have been of the MTU, 30 and 31 of half
    counted = counters(a)
    assert list(counted["arrived"]) == [2, 0, 0]
    assert list(counted["expected"]) == [61, 2, 2]


def test_a_virtual_clock_is_seen_by_the_peer() -> None:
    a, b = prober(1), prober(2)
    joined(a, b)
    b.set_virtual(Virtual(time.monotonic_ns(), 5_000_000, 0.0))
    a.start(200)
    b.start(200)
    seen = taken(a, 20)
    apart = np.where(seen["inbound"] == 1, -1, 1) * (seen["received_ns"] - seen["sent_ns"])
    assert abs(np.median(apart) - 5_000_000) < 500_000
    a.stop()
    b.stop()


def test_a_rail_that_does_not_exist_is_refused_by_name() -> None:
    with pytest.raises(SystemRefusedError, match=r"nope \(192\.0\.2\.1\)"):
        Prober(1, 1, KEY, [Rail("nope", "192.0.2.1")])


def test_flows_that_make_no_sense_are_refused() -> None:
    a = prober(1)
    for flow in (Flow(3, 2, "127.0.0.1", 9, True), Flow(0, 2, "not-an-address", 9, True)):
        with pytest.raises(OSError, match="Invalid argument"):
            a.set_flows([flow])
    with pytest.raises(ValueError, match="rate"):
        a.set_rate(0)


def test_a_peer_without_a_possible_address_silences_no_other() -> None:
    a = prober(1)
    wrong = [Flow(0, 3, "::1", 9, True), Flow(0, 4, "nowhere", 9, True)]
    with pytest.raises(OSError, match="not supported"):
        a.set_flows([*wrong, Flow(0, 2, "127.0.0.1", 9, True)])
    assert a.counters()["peer"].tolist() == [2]
    with pytest.raises(OSError, match="not supported"):
        a.set_flows(wrong)
    assert not len(a.counters())


FLOOD = """
#define _GNU_SOURCE
#include <sys/socket.h>
int recvmmsg(int fd, struct mmsghdr *some, unsigned count, int flags, struct timespec *wait)
{
    (void)fd, (void)flags, (void)wait;
    for (unsigned i = 0; i < count; i++)
        some[i].msg_len = some[i].msg_hdr.msg_controllen = 0;
    return (int)count;
}
"""
FLOODED = """
import time
from fabricctl.clock.probing import Prober, Rail
a = Prober(1, 1, bytes(16), [Rail("lo", "127.0.0.1")])
a.start(100)
for _ in range(20):
    time.sleep(0.01)
    a.take()
a.stop()
print("done")
"""


def test_a_flood_that_never_ends_keeps_nobody_from_the_samples(tmp_path: Path) -> None:
    """Of packets that are none of ours: whoever wants the samples has the interpreter's lock."""
    source, library = tmp_path / "flood.c", tmp_path / "flood.so"
    source.write_text(FLOOD)
    compiler = os.environ.get("CC", "gcc")
    subprocess.run([compiler, "-shared", "-fPIC", "-o", library, source], check=True, timeout=60)
    done = subprocess.run(
        [sys.executable, "-c", FLOODED],
        env={**os.environ, "LD_PRELOAD": str(library)},
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.stdout == "done\n", done.stderr


def test_the_probes_key_is_of_this_job_and_this_use() -> None:
    key = bytes(32)
    assert probing.probe_key(key, 1) != probing.probe_key(key, 2)
    assert len(probing.probe_key(key, 1)) == 16
