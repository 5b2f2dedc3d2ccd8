"""Numbers for people: bytes, rates and durations with their units."""

import math

NS_PER_S = 1_000_000_000

_BINARY = ("B", "KiB", "MiB", "GiB", "TiB", "PiB")
_DECIMAL = ("", "k", "M", "G", "T", "P")


def format_bytes(value: float) -> str:
    """``1536`` -> ``"1.5 KiB"``; not measured (NaN) -> ``"-"``."""
    if math.isnan(value):
        return "-"
    scaled, step = float(value), 0
    while abs(scaled) >= 1024 and step < len(_BINARY) - 1:
        scaled, step = scaled / 1024, step + 1
    return f"{scaled:.0f} B" if step == 0 else f"{scaled:.1f} {_BINARY[step]}"


def format_rate(bytes_per_s: float) -> str:
    """A link's rate in decimal bits, the way links are sold: ``125e6`` -> ``"1.00 Gbit/s"``."""
    if math.isnan(bytes_per_s):
        return "-"
    scaled, step = bytes_per_s * 8, 0
    while abs(scaled) >= 1000 and step < len(_DECIMAL) - 1:
        scaled, step = scaled / 1000, step + 1
    return f"{scaled:.0f} bit/s" if step == 0 else f"{scaled:.2f} {_DECIMAL[step]}bit/s"


def format_duration(seconds: float) -> str:
    """``0.0123`` -> ``"12.3 ms"``, ``75`` -> ``"1 min 15 s"``, NaN -> ``"-"``."""
    if math.isnan(seconds):
        return "-"
    size = abs(seconds)
    for limit, factor, unit in ((1e-6, 1e9, "ns"), (1e-3, 1e6, "us"), (1, 1e3, "ms")):
        if size < limit:
            return f"{seconds * factor:.3g} {unit}"
    if size < 60:
        return f"{seconds:.2f} s"
    whole = round(size)
    hours, minutes, rest = whole // 3600, whole % 3600 // 60, whole % 60
    sign = "-" if seconds < 0 else ""
    return f"{sign}{hours} h {minutes} min" if hours else f"{sign}{minutes} min {rest} s"
