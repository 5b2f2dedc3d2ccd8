"""Which congestion control TCP connections begin with on the moved routes (decision 26)."""

from pathlib import Path

PROC = Path("/proc/sys/net/ipv4")
_PACED = "bbr"  # and bbr2, bbr3: after a loss they send no faster than it came through lately
_LEAST = "reno"  # in every kernel


def line(given: str, proc: Path = PROC) -> list[str]:
    """``congestion NAME`` for fabric-pathd; nothing: the host's own."""
    try:
        own = (proc / "tcp_congestion_control").read_text().strip()
        available = (proc / "tcp_available_congestion_control").read_text().split()
    except OSError:
        return []
    if given == "host" or not own.startswith(_PACED):
        return []
    return [f"congestion {'cubic' if 'cubic' in available else _LEAST}"]
