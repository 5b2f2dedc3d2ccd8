"""What measuring itself costs on this node: CPU time and memory of the agent."""

import time
from collections.abc import Iterator
from pathlib import Path

from fabricctl.telemetry.slow import Reading
from fabricctl.telemetry.sysfiles import words

STATUS = Path("/proc/self/status")


class OwnReader:
    """Of this process and the threads in it, since it began."""

    name, period_s = "agent", 10.0

    def read(self) -> Iterator[Reading]:
        yield "agent", "cpu_ms", int(time.process_time() * 1000)
        for line in words(STATUS).splitlines():
            if line.startswith("VmHWM:"):  # the most that it ever had
                yield "agent", "memory_kib", int(line.split()[1])

    def close(self) -> None:
        """Nothing is kept open."""
