"""What the clocks of one job tell each other, sealed, beside the probes.

::

    offset  size  what (little-endian)
         0     4  "FBC3"
         4     1  kind: 1 hello, 2 report, 3 answer
         5     3  zero
         8     4  sender's place in the node list
        12     4  receiver's place
        16     8  sender's life: grows with every start
        24     8  number of the message in that life
        32     n  body
      32+n    16  BLAKE2b of everything before, keyed with the job's clock key

A hello's body is fields (fabricctl/fields.py): ``session`` and ``rails``; reports and answers are
packed as below. Whatever arrives is hostile until :meth:`Seal.open` has accepted it.
"""

import hashlib
import hmac
import struct
from dataclasses import dataclass
from math import isfinite

import numpy as np

from fabricctl import fields
from fabricctl.clock.edges import REPORT
from fabricctl.clock.solver import Answer, NodeReport
from fabricctl.errors import DataError
from fabricctl.wire import Freshness

HELLO, REPORT_KIND, ANSWER = 1, 2, 3
PORTS = 3  # candidates of every node; two jobs on one node rarely want the same three
MAX_BYTES = 60_000
_MAGIC = b"FBC3"
_HEAD = struct.Struct("<4sB3xIIQQ")
_MAC_BYTES = 16
_REPORT = struct.Struct("<qdd??2xI")
_ANSWER = struct.Struct("<qdddddI?3x")


@dataclass(frozen=True)
class Message:
    kind: int
    sender: int
    body: bytes


@dataclass(frozen=True)
class Hello:
    """``rails``: address and probe port by rail; ``asked_ns``: please say hello back, with this
    number in ``answers_ns``, by which the asker knows how old it is (0: nothing asked, answered).

    ``job_ns``: the sender's job time as it was sent, ``settled`` whether that may be relied on:
    who comes later begins there.
    """

    rails: tuple[tuple[str, int], ...]
    job_ns: int
    settled: bool
    asked_ns: int = 0
    answers_ns: int = 0


def ports(job: int, first: int, count: int) -> list[int]:
    """The ports that a node of this job may have bound, the likeliest first."""
    digests = [hashlib.sha256(f"clock {job} {nth}".encode()).digest() for nth in range(PORTS)]
    return [first + int.from_bytes(digest[:8], "big") % count for digest in digests]


class Seal:
    """Seals and opens the messages of one life of one node."""

    def __init__(self, key: bytes, job: int, me: int, life: int) -> None:
        self._key = hashlib.blake2b(f"fabric clock {job}".encode(), key=key[:64]).digest()
        self._me, self._life, self._seq = me, life, 0
        self._fresh = Freshness()

    def close(self, kind: int, to: int, body: bytes) -> bytes:
        self._seq += 1
        head = _HEAD.pack(_MAGIC, kind, self._me, to, self._life, self._seq)
        return head + body + self._mac(head + body)

    def open(self, datagram: bytes) -> Message:
        """Raises :class:`DataError` for what is not ours, not for us, or old."""
        if not _HEAD.size + _MAC_BYTES <= len(datagram) <= MAX_BYTES:
            raise DataError("clock message: not one of ours")
        sealed, mac = datagram[:-_MAC_BYTES], datagram[-_MAC_BYTES:]
        magic, kind, sender, to, life, seq = _HEAD.unpack_from(sealed)
        if magic != _MAGIC or to != self._me:
            raise DataError("clock message: not one of ours")
        if not hmac.compare_digest(mac, self._mac(sealed)):
            raise DataError("clock message: not sealed with the job's key")
        if not self._fresh.accepts(str(sender), life, seq):
            raise DataError("clock message: a copy of an old one")
        return Message(kind, sender, sealed[_HEAD.size :])

    def _mac(self, data: bytes) -> bytes:
        return hashlib.blake2b(data, key=self._key, digest_size=_MAC_BYTES).digest()


def pack_hello(hello: Hello) -> bytes:
    rails = " ".join(f"{address}/{port}" for address, port in hello.rails)
    return fields.encode(
        {
            "rails": rails,
            "job_ns": str(hello.job_ns),
            "settled": str(int(hello.settled)),
            "asked_ns": str(hello.asked_ns),
            "answers_ns": str(hello.answers_ns),
        }
    ).encode()


def unpack_hello(body: bytes) -> Hello:
    """Raises :class:`DataError`."""
    try:
        given = fields.decode(body.decode())
        pairs = [item.rsplit("/", 1) for item in given["rails"].split()]
        rails = tuple((address, int(port)) for address, port in pairs)
        times = [int(given[name]) for name in ("job_ns", "asked_ns", "answers_ns")]
    except (UnicodeDecodeError, KeyError, ValueError):
        raise DataError("clock message: a hello that cannot be read") from None
    if len(rails) > 8 or not all(0 <= port < 65_536 for _, port in rails):
        raise DataError("clock message: a hello with rails that cannot be")
    if not (0 < times[0] < 1 << 62 and all(0 <= time_ns < 1 << 62 for time_ns in times)):
        raise DataError("clock message: a hello with a time that cannot be")
    return Hello(rails, times[0], given.get("settled") == "1", *times[1:])


def pack_report(report: NodeReport) -> bytes:
    head = _REPORT.pack(
        report.window, report.theta_ns, report.p_theta, report.settled, report.own, report.base
    )
    return head + report.edges.tobytes()


def unpack_report(body: bytes, sender: int) -> NodeReport:
    """Raises :class:`DataError`. Rows are looked at by who solves, all nodes' at once."""
    rest = len(body) - _REPORT.size
    if rest < 0 or rest % REPORT.itemsize:
        raise DataError("clock message: a report of the wrong size")
    window, theta, p_theta, settled, own, base = _REPORT.unpack_from(body)
    if not (isfinite(theta) and isfinite(p_theta) and p_theta > 0):
        raise DataError("clock message: a report that cannot be")
    edges = np.frombuffer(body, REPORT, offset=_REPORT.size)
    return NodeReport(sender, window, theta, p_theta, settled, edges, base, own)


def pack_answer(answer: Answer) -> bytes:
    head = _ANSWER.pack(
        answer.window,
        answer.theta_ns,
        answer.sigma_ns,
        answer.least_ns,
        answer.most_ns,
        answer.rate,
        answer.base,
        answer.agreed,
    )
    return head + answer.residuals_ns.astype("<f4").tobytes()


def unpack_answer(body: bytes, me: int) -> Answer:
    """Raises :class:`DataError`."""
    rest = len(body) - _ANSWER.size
    if rest < 0 or rest % 4:
        raise DataError("clock message: an answer of the wrong size")
    window, theta, sigma, least, most, rate, base, agreed = _ANSWER.unpack_from(body)
    if not 1 <= rate <= 1_000:
        raise DataError("clock message: an answer that cannot be")
    residuals = np.frombuffer(body, "<f4", offset=_ANSWER.size).astype(float)
    return Answer(me, window, theta, sigma, least, most, rate, residuals, base, agreed)
