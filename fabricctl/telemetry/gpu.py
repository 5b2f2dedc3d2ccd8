"""GPUs: one row a GPU a second, and a note for each XID (docs/telemetry.md)."""

from collections.abc import Callable, Sequence
from time import CLOCK_MONOTONIC, clock_gettime_ns

from fabricctl.errors import SystemRefusedError
from fabricctl.store import schema
from fabricctl.store.schema import Severity
from fabricctl.telemetry import nvml
from fabricctl.telemetry.source import Row, Tell

# What NVIDIA's XID catalogue says of those that end jobs.
XIDS = {
    13: "graphics engine exception, often the program's own",
    31: "memory page fault, often the program's own",
    43: "the GPU stopped processing, often the program's own",
    48: "double-bit ECC error",
    63: "a row of memory was remapped",
    64: "a row of memory could not be remapped",
    74: "NVLink error",
    79: "the GPU has fallen off the bus",
    92: "many single-bit ECC errors",
    94: "contained ECC error: the program it hit is killed",
    95: "uncontained ECC error: every program is killed, the GPU must be reset",
    119: "the GPU's system processor does not answer",
}
DEVICE_FILE = "/dev/nvidiactl"


class GpuSource:
    """Rows of the ``gpu`` table; none, and a note why, on a node with GPUs but without NVML."""

    table = schema.GPU

    def __init__(
        self,
        tell: Tell,
        library: str = nvml.LIBRARY,
        expected: bool = True,
        mine: Callable[[], frozenset[int] | None] = lambda: None,
    ) -> None:
        """``mine``: the job's processes, as they were seen last; None: not known."""
        self._tell, self._mine = tell, mine
        self._nvml: nvml.Nvml | None = None
        try:
            self._nvml = nvml.Nvml(library)
        except SystemRefusedError as error:
            if expected:
                tell("gpu", f"GPUs not measured: {error}")

    def rows(self) -> Sequence[Row]:
        """A round takes a millisecond a GPU and up, and gives means over a second or so."""
        if self._nvml is None:
            return []
        rows: list[Row] = []
        mine = self._mine()
        for gpu in range(self._nvml.count):
            at_ns = clock_gettime_ns(CLOCK_MONOTONIC)
            rows.append((at_ns, gpu, *self._nvml.readings(gpu, mine)))
        for gpu, xid in self._nvml.xids():
            words = XIDS.get(xid, "see NVIDIA's XID catalogue")
            self._tell("gpu", f"XID {xid} on GPU {gpu}: {words}", Severity.ERROR)
        return rows

    def close(self) -> None:
        if self._nvml is not None:
            self._nvml.close()
            self._nvml = None
