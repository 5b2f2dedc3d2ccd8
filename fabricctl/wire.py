"""Datagrams between the agents of one job: fields under the job's key.

::

    offset  size  what
         0     4  "FBR1"
         4    32  HMAC-SHA256, under the job's key, of everything else in the datagram
        36     n  fields (fabricctl/fields.py), joined by newlines

Every message has ``job``, ``node`` (the sender), ``life`` (grows with every start of that node's
agent) and ``seq`` (grows with every message of one life): a copy of an old one is refused by
:class:`Freshness`. Whatever arrives is hostile until :func:`open_sealed` has accepted it.
"""

import hashlib
import hmac
import re
from collections.abc import Mapping

from fabricctl import fields
from fabricctl.errors import DataError

MAGIC = b"FBR1"
_MAC_BYTES = 32
_HEAD_BYTES = len(MAGIC) + _MAC_BYTES
MAX_BYTES = 60_000  # below what UDP over IPv4 carries (65,507)
_NUMBER = re.compile(r"[0-9]{1,20}")


def seal(message: Mapping[str, str], key: bytes) -> bytes:
    """The datagram of ``message``; raises :class:`DataError` when it is too long."""
    text = fields.encode(message).encode()
    if _HEAD_BYTES + len(text) > MAX_BYTES:
        raise DataError(f"message: {len(text)} bytes do not fit a datagram")
    return MAGIC + _mac(text, key) + text


def open_sealed(datagram: bytes, key: bytes) -> dict[str, str]:
    """The fields of a datagram that was sealed with ``key``; raises :class:`DataError`."""
    if len(datagram) > MAX_BYTES or not datagram.startswith(MAGIC):
        raise DataError("message: not one of ours")
    mac, text = datagram[len(MAGIC) : _HEAD_BYTES], datagram[_HEAD_BYTES:]
    if not hmac.compare_digest(mac, _mac(text, key)):
        raise DataError("message: not sealed with the job's key")
    try:
        return fields.decode(text.decode())
    except UnicodeDecodeError:
        raise DataError("message: not UTF-8") from None


def of_another_version(datagram: bytes) -> bool:
    """Whether it begins as one of ours does, but for the digit: MAGIC tells the version."""
    return datagram[:3] == MAGIC[:3] and datagram[:4] != MAGIC and datagram[3:4].isdigit()


def _mac(text: bytes, key: bytes) -> bytes:
    return hmac.digest(key, MAGIC + text, hashlib.sha256)


def number(message: Mapping[str, str], name: str) -> int:
    """A field that must be a whole number; raises :class:`DataError`."""
    text = message.get(name, "")
    if not _NUMBER.fullmatch(text):
        raise DataError(f"message: {name} {text[:24]!r} is not a number")
    return int(text)


class Freshness:
    """Accepts every message of a sender once, and none of an earlier life."""

    def __init__(self) -> None:
        self._last: dict[str, tuple[int, int]] = {}

    def accepts(self, node: str, life: int, seq: int) -> bool:
        """Whether this is newer than all that came from ``node`` before."""
        if (life, seq) <= self._last.get(node, (-1, -1)):
            return False
        self._last[node] = (life, seq)
        return True
