"""Memory that was not where it was wanted: numastat of each NUMA node (Documentation/admin-guide/
numastat.rst). Pages; a job that counts many `numa_miss` or `other_node` is bound badly."""

import errno
import os
from collections.abc import Iterator
from pathlib import Path

from fabricctl.telemetry.slow import Reading
from fabricctl.telemetry.sysfiles import words

SYS = Path("/sys/devices/system/node")
FIGURES = ("numa_miss", "numa_foreign", "other_node")


class NumaReader:
    """Of each node of the machine."""

    name, period_s = "numa", 10.0

    def __init__(self, folder: Path = SYS) -> None:
        self._folder = folder

    def read(self) -> Iterator[Reading]:
        nodes = sorted(self._folder.glob("node[0-9]*"))
        if not nodes:
            raise OSError(errno.ENOENT, f"{self._folder}: {os.strerror(errno.ENOENT)}")
        for node in nodes:
            for line in words(node / "numastat").splitlines():
                figure, _, value = line.partition(" ")
                if figure in FIGURES and value.strip().isdigit():
                    yield node.name, figure, int(value)

    def close(self) -> None:
        """Nothing is kept open."""
