"""Network file systems: NFS by /proc/self/mountstats (nfs(5), fs/nfs of the kernel), Lustre clients
by /proc/fs/lustre/llite. Bytes, requests, those sent again, and the time that they took."""

import errno
from collections.abc import Iterator
from pathlib import Path

from fabricctl.telemetry.slow import Reading
from fabricctl.telemetry.sysfiles import number, words

PROC = Path("/proc")
MAX_BYTES = 4 << 20  # a mount has 8 KB
MAX_MOUNTS = 16
# Of a line "bytes:": normal and direct reads and writes by programs, then what the server did.
_BYTES = ("read_bytes", "write_bytes", "direct_read_bytes", "direct_write_bytes",
          "server_read_bytes", "server_write_bytes")  # fmt: skip
# Their lines have count, transmissions, timeouts, bytes, and time in the queue, to the answer and
# in all, in ms.
_OPERATIONS = {"READ", "WRITE", "GETATTR", "OPEN", "COMMIT", "LOOKUP"}


class NetfsReader:
    """Of each mount that is a network's; a node without one has nothing to tell."""

    name, period_s = "netfs", 10.0

    def __init__(self, folder: Path = PROC) -> None:
        self._folder = folder

    def read(self) -> Iterator[Reading]:
        found = [*self._nfs(), *self._lustre()]
        if not found:
            raise OSError(errno.ENODEV, "no NFS or Lustre file system is mounted")
        yield from found

    def _nfs(self) -> Iterator[Reading]:
        """By mount; of all together where that is not for us to read, as for most agents."""
        try:
            with (self._folder / "self/mountstats").open("rb") as stream:
                yield from nfs(stream.read(MAX_BYTES).decode("utf-8", "replace"))
        except PermissionError:
            try:
                yield from rpc(words(self._folder / "net/rpc/nfs"))
            except FileNotFoundError:
                return

    def _lustre(self) -> Iterator[Reading]:
        for client in sorted((self._folder / "fs/lustre/llite").glob("*"))[:MAX_MOUNTS]:
            try:
                lines = (client / "stats").read_text("ascii", "replace").splitlines()
            except OSError:
                continue
            for line in lines:
                fields = line.split()  # read_bytes 12 samples [bytes] least most sum
                if len(fields) >= 2 and fields[1].isdigit():
                    yield client.name[:31], f"{fields[0]}_calls", int(fields[1])
                if len(fields) >= 7 and fields[6].isdigit():
                    yield client.name[:31], fields[0], int(fields[6])
            dirty = number(client / "dirty_bytes")
            if dirty is not None:
                yield client.name[:31], "dirty_bytes", dirty

    def close(self) -> None:
        """Nothing is kept open."""


def rpc(text: str) -> Iterator[Reading]:
    """Calls of all NFS mounts, and how many were sent again, of /proc/net/rpc/nfs."""
    for line in text.splitlines():
        kind, *values = line.split()[:3]
        if kind == "rpc" and len(values) == 2 and all(value.isdigit() for value in values):
            yield "all mounts", "calls", int(values[0])
            yield "all mounts", "sent_again", int(values[1])


def nfs(text: str) -> Iterator[Reading]:
    """From the text of mountstats."""
    mount, mounts = "", 0
    for line in text.splitlines():
        fields = line.split()
        if line.startswith("device "):
            is_nfs = any(
                fields[n] == "fstype" and fields[n + 1].startswith("nfs")
                for n in range(len(fields) - 1)
            )
            mounts += is_nfs
            mount = fields[4] if is_nfs and mounts <= MAX_MOUNTS else ""
        elif mount and fields and fields[0] == "bytes:":
            for figure, value in zip(_BYTES, fields[1:], strict=False):
                if value.isdigit():
                    yield mount, figure, int(value)
        elif (
            mount
            and len(fields) >= 9
            and fields[0].rstrip(":") in _OPERATIONS
            and all(word.isdigit() for word in fields[1:9])
        ):
            yield from _operation(mount, fields)


def _operation(mount: str, fields: list[str]) -> Iterator[Reading]:
    count, sent, timeouts, _, _, queued, answered, took = map(int, fields[1:9])
    name = fields[0].rstrip(":").lower()
    yield mount, f"{name}_calls", count
    yield mount, f"{name}_sent_again", max(0, sent - count)
    yield mount, f"{name}_timeouts", timeouts
    yield mount, f"{name}_queued_ms", queued
    yield mount, f"{name}_answered_ms", answered
    yield mount, f"{name}_took_ms", took
