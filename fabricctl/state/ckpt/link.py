"""Frames between a rank and its keeper, and between keepers: fields, then bytes.

::

    offset  size  what
         0     4  length n of the sealed fields, big-endian
         4     n  fields under the job's key (fabricctl/wire.py); `bytes` says how many follow
       4+n     …  the payload: its CRC-32C stands in `crc`

A connection between keepers begins with 32 random bytes from who was called; they are in every
frame's seal as the field ``nonce``, with a number that grows: no frame can be said twice. On the
node itself the socket's peer is known by its uid.
"""

import hashlib
import os
import socket
import struct
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from fabricctl import wire
from fabricctl.errors import DataError
from fabricctl.state.ckpt import bytes as raw

MAX_PAYLOAD = 1 << 40
PIECE = 4 << 20
PORTS = 8  # candidates that a keeper may have bound
_LENGTH = struct.Struct(">I")


def ports(job: int, first: int, count: int) -> list[int]:
    """The ports that a keeper of this job may have bound, the likeliest first."""
    digests = (hashlib.sha256(f"keeper {job} {nth}".encode()).digest() for nth in range(PORTS))
    return [first + int.from_bytes(digest[:8], "big") % count for digest in digests]


def listen(candidates: Sequence[int]) -> socket.socket:
    """On the first port that is free; raises OSError."""
    failure = OSError("no port to bind")
    for port in candidates:
        try:
            return socket.create_server(("", port), backlog=512)
        except OSError as error:
            failure = error
    raise failure


def keep_alive(made: socket.socket) -> None:
    """A node that is gone without a word ends the connection after 20 s, whoever stands still, also
    in the middle of what is sent to it (tcp(7), TCP_USER_TIMEOUT in milliseconds)."""
    made.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option, value in (
        (socket.TCP_KEEPIDLE, 5),
        (socket.TCP_KEEPINTVL, 5),
        (socket.TCP_KEEPCNT, 3),
        (socket.TCP_USER_TIMEOUT, 20_000),
    ):
        made.setsockopt(socket.IPPROTO_TCP, option, value)


class RefusedError(DataError):
    """The other side said no; the connection is as good as before."""


class Link:
    """One connection. What raises OSError or :class:`DataError` has ended it: close it."""

    def __init__(self, made: socket.socket, key: bytes, nonce: bytes) -> None:
        self.socket = made
        self._key = key
        self._nonce = nonce.hex()
        self._sent = self._got = 0

    @classmethod
    def call(cls, address: tuple[str, int], key: bytes, timeout_s: float, word_s: float) -> "Link":
        """To a keeper on another node, which has ``word_s`` for each thing that it says. Raises
        TimeoutError only where nobody takes connections, after ``timeout_s``."""
        made = socket.create_connection(address, timeout_s)
        try:
            made.settimeout(word_s)
            made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            keep_alive(made)
            return cls(made, key, receive_exactly(made, 32))
        except TimeoutError:
            made.close()
            raise DataError("keeper: a connection, and not a word") from None
        except BaseException:
            made.close()
            raise

    @classmethod
    def answer(cls, made: socket.socket, key: bytes) -> "Link":
        """The other side of :meth:`call`."""
        nonce = os.urandom(32)
        made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        made.sendall(nonce)
        return cls(made, key, nonce)

    @classmethod
    def local(cls, made: socket.socket) -> "Link":
        """Between a rank and the keeper of its node: both are the same user's."""
        return cls(made, b"local", bytes(32))

    def send(
        self, message: Mapping[str, str], payload: memoryview | None = None, crc: int | None = None
    ) -> None:
        """``crc``: of the payload, where it is known from its first copy; else it is made."""
        head = {**message, "nonce": self._nonce, "nr": str(self._sent)}
        self._sent += 1
        if payload is not None:
            known = raw.crc(payload) if crc is None else crc
            head |= {"bytes": str(payload.nbytes), "crc": str(known)}
        text = wire.seal(head, self._key)
        self.socket.sendall(_LENGTH.pack(len(text)) + text)
        if payload is not None:
            for begin, end in raw.pieces(payload.nbytes, PIECE):
                self.socket.sendall(payload[begin:end])

    def receive(self, within_s: float | None = None) -> dict[str, str]:
        """The next frame's fields; :meth:`payload` must follow when it has ``bytes``. ``within_s``:
        for all of it, however slowly it comes; the socket's timeout is another one then."""
        end_s = None if within_s is None else time.monotonic() + within_s
        (length,) = _LENGTH.unpack(receive_exactly(self.socket, _LENGTH.size, end_s))
        if length > wire.MAX_BYTES:
            raise DataError("keeper: a frame that is too long")
        message = wire.open_sealed(receive_exactly(self.socket, length, end_s), self._key)
        if message.get("nonce") != self._nonce or message.get("nr") != str(self._got):
            raise DataError("keeper: a frame of another connection")
        self._got += 1
        return message

    def payload(self, message: Mapping[str, str], into: memoryview) -> None:
        """Raises :class:`DataError` when what came is not what was sent."""
        if payload_bytes(message) != into.nbytes:
            raise DataError(f"keeper: {message.get('bytes')} bytes came, {into.nbytes} expected")
        got = 0
        while got < into.nbytes:
            count = self.socket.recv_into(into[got : got + PIECE])
            if not count:
                raise DataError("keeper: the connection ended in the middle")
            got += count
        if raw.crc(into) != wire.number(message, "crc"):
            raise DataError("keeper: checksum of what came is wrong")

    def small(self, message: Mapping[str, str]) -> bytes:
        """A payload that is no state: an inventory, a manifest."""
        size = payload_bytes(message)
        if size > 64 << 20:
            raise DataError("keeper: a list that is too long")
        into = bytearray(size)
        self.payload(message, memoryview(into))
        return bytes(into)

    def ask(self, message: Mapping[str, str]) -> dict[str, str]:
        """One question, one answer; raises :class:`RefusedError` with what the other side said."""
        self.send(message)
        return self.told()

    def told(self) -> dict[str, str]:
        """An answer that must not be an error."""
        answer = self.receive()
        if answer.get("kind") == "error":
            raise RefusedError(answer.get("why", "refused"))
        return answer

    def close(self) -> None:
        self.socket.close()


def payload_bytes(message: Mapping[str, str]) -> int:
    """How many follow; raises :class:`DataError`."""
    size = wire.number(message, "bytes")
    if size > MAX_PAYLOAD:
        raise DataError("keeper: a payload that is too long")
    return size


def receive_exactly(made: socket.socket, count: int, end_s: float | None = None) -> bytes:
    """Raises :class:`DataError` at the end of the connection, or at ``end_s`` (time.monotonic)."""
    data = bytearray()
    while len(data) < count:
        if end_s is not None:
            if (left_s := end_s - time.monotonic()) <= 0:
                raise DataError("keeper: it was not said in time")
            made.settimeout(left_s)
        part = made.recv(count - len(data))
        if not part:
            raise DataError("keeper: the connection ended")
        data += part
    return bytes(data)


def is_socket(path: Path) -> bool:
    """Whether something was made to be called there."""
    try:
        return path.is_socket()
    except OSError:
        return False
