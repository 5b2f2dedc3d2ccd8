"""Stamps of NICs: whether a rail's can take them, whether they are switched on, its clock (PHC).

Asked by ioctl, as `ethtool -T` and `hwstamp_ctl` do (linux/ethtool.h, linux/net_tstamp.h,
Documentation/networking/timestamping.rst). A job's probes are no PTP messages, so a NIC counts only
with a filter that stamps every packet that arrives.
"""

import contextlib
import ctypes
import fcntl
import os
import socket
import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

_SIOCETHTOOL, _SIOCSHWTSTAMP, _SIOCGHWTSTAMP = 0x8946, 0x89B0, 0x89B1
_GET_TS_INFO = 0x41
_TS_INFO = struct.Struct("=IIiI12xI12x")  # cmd, so_timestamping, phc_index, tx_types, rx_filters
_CONFIG = struct.Struct("=iii")  # flags, tx_type, rx_filter
_HARDWARE = 1 << 0 | 1 << 2 | 1 << 6  # SOF_TIMESTAMPING_{TX,RX,RAW}_HARDWARE
_TX_OFF, _TX_ON, _FILTER_NONE, _FILTER_ALL = 0, 1, 0, 1
_NET = Path("/sys/class/net")


@dataclass(frozen=True)
class Choice:
    """``fd``: the open device of the NIC's clock, -1: stamps are the kernel's, and ``why``, where
    somebody could change that."""

    fd: int = -1
    why: str = ""


def clock_of(interface: str) -> int | None:
    """The number of the clock that this NIC stamps every packet with; None: it cannot."""
    try:
        answer = _ask(_SIOCETHTOOL, interface, _TS_INFO.pack(_GET_TS_INFO, 0, -1, 0, 0))
    except OSError:
        return None
    _, flags, phc, kinds, filters = _TS_INFO.unpack(answer)
    able = flags & _HARDWARE == _HARDWARE and kinds & 1 << _TX_ON and filters & 1 << _FILTER_ALL
    return phc if able and phc >= 0 else None


def choose(interface: str, clocks: Mapping[int, int]) -> Choice:
    """Whose stamps a rail's probes get; ``clocks``: open devices by number."""
    phc = clock_of(interface)
    if phc is None:
        return Choice()
    if len(list(_NET.glob(f"{interface}/lower_*"))) > 1:
        return Choice(why="it is made of several NICs, each with a clock of its own")
    if switched_on(interface) is False:
        return Choice(
            why=f"they are not switched on: hwstamp_ctl -i {interface} -t 1 -r 1, or let "
            'clock.nic_stamps = "enable" do it'
        )
    if phc not in clocks:
        return Choice(why=f"its clock, /dev/ptp{phc}, could not be opened")
    return Choice(clocks[phc])


def switched_on(interface: str) -> bool | None:
    """Whether every packet is stamped, both ways; None: this driver does not tell."""
    try:
        _, kind, filtered = _CONFIG.unpack(_ask(_SIOCGHWTSTAMP, interface, _CONFIG.pack(0, 0, 0)))
    except OSError:
        return None
    return bool(kind != _TX_OFF and filtered == _FILTER_ALL)


def enable(interface: str) -> str:
    """Switches the stamps on where nobody uses them yet; what was done, or why nothing; root only.

    Stays so until the driver is loaded anew: they cost nothing, and later jobs want them, too.
    """
    if clock_of(interface) is None or switched_on(interface):
        return ""
    try:
        _, kind, filtered = _CONFIG.unpack(_ask(_SIOCGHWTSTAMP, interface, _CONFIG.pack(0, 0, 0)))
        if (kind, filtered) != (_TX_OFF, _FILTER_NONE):
            return f"{interface}: somebody else has set what this NIC stamps; it is left alone"
        _ask(_SIOCSHWTSTAMP, interface, _CONFIG.pack(0, _TX_ON, _FILTER_ALL))
    except OSError as error:
        return f"{interface}: its stamps could not be switched on: {error.strerror}"
    return f"{interface}: stamps of all packets switched on (clock.nic_stamps)"


def open_clocks(interfaces: Iterable[str]) -> dict[int, int]:
    """Descriptors of these NICs' clocks by number, to be read only; those that can be opened."""
    found: dict[int, int] = {}
    for interface in interfaces:
        phc = clock_of(interface)
        if phc is None or phc in found:
            continue
        with contextlib.suppress(OSError):
            found[phc] = os.open(f"/dev/ptp{phc}", os.O_RDONLY | os.O_CLOEXEC)
    return found


def _ask(request: int, interface: str, given: bytes) -> bytes:
    data = ctypes.create_string_buffer(given, len(given))
    name = interface.encode()[:15]
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as asked:
        fcntl.ioctl(asked, request, struct.pack("16sP16x", name, ctypes.addressof(data)))
    return data.raw
