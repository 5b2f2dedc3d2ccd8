"""NVML by its C ABI: the few calls that the GPU source makes (nvml.h of the driver).

The library is the driver's, loaded when it is there. Every call returns a status; what a GPU does
not support is None, never zero.
"""

import ctypes
from collections.abc import Sequence

from fabricctl.errors import SystemRefusedError

LIBRARY = "libnvidia-ml.so.1"
_SUCCESS, _NOT_SUPPORTED, _TIMEOUT = 0, 3, 10
_EVENT_XID = 1 << 3  # nvmlEventTypeXidCriticalError
_SM_CLOCK, _MEMORY_CLOCK = 1, 2  # nvmlClockType_t
_GPU_TEMPERATURE = 0
_CORRECTED, _UNCORRECTED, _VOLATILE = 0, 1, 0
_LINK_ERRORS = range(4)  # nvmlNvLinkErrorCounter_t: replay, recovery, CRC of flits, CRC of data
MAX_LINKS = 18  # NVML_NVLINK_MAX_LINKS
# NVML_FI_DEV_*: counters that are there at once. nvmlDeviceGetPcieThroughput measures for 20 ms
# each way, which nobody who samples once a second can wait for.
_PCIE_TX, _PCIE_RX = 197, 198  # bytes
_NVLINK_TX, _NVLINK_RX = 138, 139  # KiB, of one link, or of the whole GPU with this scope:
_ALL_LINKS = (1 << 32) - 1
_WIDE = (2, 3, 4)  # nvmlValueType_t of 64 bits: one of 32 wraps several times a second
MAX_PROCESSES = 512  # of one GPU that are looked at
_UNKNOWN_BYTES = (1 << 64) - 1  # NVML_VALUE_NOT_AVAILABLE


class _Utilisation(ctypes.Structure):
    _fields_ = (("gpu", ctypes.c_uint), ("memory", ctypes.c_uint))


class _Memory(ctypes.Structure):
    _fields_ = (
        ("total", ctypes.c_ulonglong),
        ("free", ctypes.c_ulonglong),
        ("used", ctypes.c_ulonglong),
    )


class _Event(ctypes.Structure):
    _fields_ = (
        ("device", ctypes.c_void_p),
        ("kind", ctypes.c_ulonglong),
        ("data", ctypes.c_ulonglong),
        ("gpu_instance", ctypes.c_uint),
        ("compute_instance", ctypes.c_uint),
    )


class _FieldValue(ctypes.Structure):
    _fields_ = (
        ("field", ctypes.c_uint),
        ("scope", ctypes.c_uint),
        ("timestamp_us", ctypes.c_longlong),
        ("latency_us", ctypes.c_longlong),
        ("kind", ctypes.c_uint),
        ("status", ctypes.c_int),
        ("value", ctypes.c_ulonglong),
    )


class _Process(ctypes.Structure):  # nvmlProcessInfo_t
    _fields_ = (
        ("pid", ctypes.c_uint),
        ("used_bytes", ctypes.c_ulonglong),
        ("gpu_instance", ctypes.c_uint),
        ("compute_instance", ctypes.c_uint),
    )


class Nvml:
    """An open NVML with its GPUs. Raises :class:`SystemRefusedError` when there is none."""

    def __init__(self, library: str = LIBRARY) -> None:
        try:
            self._library = ctypes.CDLL(library)
            self._library.nvmlErrorString.restype = ctypes.c_char_p
        except (OSError, AttributeError) as error:
            raise SystemRefusedError(f"NVML: {library} cannot be loaded: {error}") from None
        status = self._library.nvmlInit_v2()
        if status != _SUCCESS:
            raise SystemRefusedError(f"NVML: {library} does not start: {self._words(status)}")
        count = ctypes.c_uint()
        if self._library.nvmlDeviceGetCount_v2(ctypes.byref(count)) != _SUCCESS:
            count.value = 0
        self._devices = [handle for nth in range(count.value) if (handle := self._handle(nth))]
        self._links = [self._active_links(device) for device in self._devices]
        self._events = self._register()

    @property
    def count(self) -> int:
        return len(self._devices)

    def _words(self, status: int) -> str:
        text = self._library.nvmlErrorString(status)
        return text.decode("utf-8", "replace") if text else f"status {status}"

    def _handle(self, nth: int) -> ctypes.c_void_p | None:
        handle = ctypes.c_void_p()
        status = self._library.nvmlDeviceGetHandleByIndex_v2(nth, ctypes.byref(handle))
        return handle if status == _SUCCESS else None

    def _active_links(self, device: ctypes.c_void_p) -> list[int]:
        state = ctypes.c_uint()
        return [
            link
            for link in range(MAX_LINKS)
            if self._call("nvmlDeviceGetNvLinkState", device, link, ctypes.byref(state))
            and state.value
        ]

    def _register(self) -> ctypes.c_void_p | None:
        events = ctypes.c_void_p()
        if not self._call("nvmlEventSetCreate", ctypes.byref(events)):
            return None
        kinds = ctypes.c_ulonglong(_EVENT_XID)
        taken = [
            self._call("nvmlDeviceRegisterEvents", device, kinds, events)
            for device in self._devices
        ]
        return events if any(taken) else None

    def _call(self, name: str, *given: object) -> bool:
        """Whether an older or a newer driver has the call and it gave a value."""
        function = getattr(self._library, name, None)
        return function is not None and function(*given) == _SUCCESS

    def _uint(self, name: str, device: ctypes.c_void_p, *given: object) -> int | None:
        value = ctypes.c_uint()
        return value.value if self._call(name, device, *given, ctypes.byref(value)) else None

    def _ulong(self, name: str, device: ctypes.c_void_p, *given: object) -> int | None:
        value = ctypes.c_ulonglong()
        return value.value if self._call(name, device, *given, ctypes.byref(value)) else None

    def readings(self, nth: int, mine: frozenset[int] | None = None) -> Sequence[int | None]:
        """One GPU's, in the order of the table's columns behind its index; ``mine``: processes of
        the job, None when they are not known."""
        device = self._devices[nth]
        remapped, remap_state = self._remapped(device)
        use, memory = _Utilisation(), _Memory()
        used = self._call("nvmlDeviceGetUtilizationRates", device, ctypes.byref(use))
        sized = self._call("nvmlDeviceGetMemoryInfo", device, ctypes.byref(memory))
        return (
            use.gpu if used else None,
            self._uint("nvmlDeviceGetTemperature", device, _GPU_TEMPERATURE),
            memory.used if sized else None,
            memory.total if sized else None,
            self._uint("nvmlDeviceGetClockInfo", device, _SM_CLOCK),
            self._uint("nvmlDeviceGetClockInfo", device, _MEMORY_CLOCK),
            self._uint("nvmlDeviceGetPowerUsage", device),
            self._ulong("nvmlDeviceGetTotalEnergyConsumption", device),
            self._ulong("nvmlDeviceGetCurrentClocksThrottleReasons", device),
            self._ulong("nvmlDeviceGetTotalEccErrors", device, _CORRECTED, _VOLATILE),
            self._ulong("nvmlDeviceGetTotalEccErrors", device, _UNCORRECTED, _VOLATILE),
            remapped,
            self._uint("nvmlDeviceGetPcieReplayCounter", device),
            self._link_errors(nth),
            *self._moved(device),
            remap_state,
            *self._processes(device, mine),
        )

    def _remapped(self, device: ctypes.c_void_p) -> tuple[int | None, int | None]:
        words = [ctypes.c_uint() for _ in range(4)]  # corrected, uncorrected, pending, failed
        if not self._call("nvmlDeviceGetRemappedRows", device, *map(ctypes.byref, words)):
            return None, None
        corrected, uncorrected, pending, failed = (word.value for word in words)
        return corrected + uncorrected, int(pending != 0) + 2 * int(failed != 0)

    def _moved(self, device: ctypes.c_void_p) -> Sequence[int | None]:
        """Bytes over PCIe, sent and received, and over NVLink."""
        fields = (_FieldValue * 4)()
        for at, number in enumerate((_PCIE_TX, _PCIE_RX, _NVLINK_TX, _NVLINK_RX)):
            fields[at].field, fields[at].status = number, _NOT_SUPPORTED
            fields[at].scope = _ALL_LINKS if number in (_NVLINK_TX, _NVLINK_RX) else 0
        if not self._call("nvmlDeviceGetFieldValues", device, 4, fields):
            return (None,) * 4
        return [
            one.value * (1 if one.field in (_PCIE_TX, _PCIE_RX) else 1024)
            if one.status == _SUCCESS and one.kind in _WIDE
            else None
            for one in fields
        ]

    def _processes(
        self, device: ctypes.c_void_p, mine: frozenset[int] | None
    ) -> Sequence[int | None]:
        """All that compute there, the job's, and the memory of these."""
        count, found = ctypes.c_uint(MAX_PROCESSES), (_Process * MAX_PROCESSES)()
        if not self._call(
            "nvmlDeviceGetComputeRunningProcesses_v3", device, ctypes.byref(count), found
        ):
            return None, None, None
        every = found[: min(count.value, MAX_PROCESSES)]
        if mine is None:
            return len(every), None, None
        ours = [one for one in every if one.pid in mine]
        known = all(one.used_bytes != _UNKNOWN_BYTES for one in ours)
        return len(every), len(ours), sum(one.used_bytes for one in ours) if known else None

    def _link_errors(self, nth: int) -> int | None:
        found = [
            self._ulong("nvmlDeviceGetNvLinkErrorCounter", self._devices[nth], link, kind)
            for link in self._links[nth]
            for kind in _LINK_ERRORS
        ]
        known = [value for value in found if value is not None]
        return sum(known) if known else None

    def xids(self) -> list[tuple[int, int]]:
        """GPU and XID of each critical error since the last call; never waits."""
        found: list[tuple[int, int]] = []
        event = _Event()
        handles = [device.value for device in self._devices]
        while self._events is not None and len(found) < 64:
            if not self._call("nvmlEventSetWait_v2", self._events, ctypes.byref(event), 0):
                break
            if event.kind == _EVENT_XID and event.device in handles:
                found.append((handles.index(event.device), int(event.data)))
        return found

    def close(self) -> None:
        if self._events is not None:
            self._call("nvmlEventSetFree", self._events)
            self._events = None
        self._library.nvmlShutdown()
