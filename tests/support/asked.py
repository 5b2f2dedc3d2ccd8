"""An agent of this machine whom a job's user asks."""

import socket
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence

from fabricctl import wire
from fabricctl.agent import mesh

Asked = Mapping[str, str]


class AskedAgent:
    """``answer`` makes of each question the datagrams that go back."""

    def __init__(
        self, ports: Sequence[int], key: bytes, answer: Callable[[Asked], Iterable[bytes]]
    ) -> None:
        self._key, self._answer = key, answer
        self._socket = mesh._bind(list(ports))
        self._socket.setblocking(True)
        self._socket.settimeout(30)
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        while True:
            data, sender = self._socket.recvfrom(65_000)
            if data == b"end":
                return
            for datagram in self._answer(wire.open_sealed(data, self._key)):
                self._socket.sendto(datagram, sender)

    def close(self) -> None:
        """While the thread still waits on it the port would stay bound."""
        host = "::1" if self._socket.family == socket.AF_INET6 else "127.0.0.1"
        self._socket.sendto(b"end", (host, self._socket.getsockname()[1]))
        self._thread.join(30)
        self._socket.close()
