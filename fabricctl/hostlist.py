"""Slurm host lists: ``n[1-3,7],gpu[08-10]-ib`` to names and back.

Follows Slurm's own grammar (man slurm.conf, NodeName): brackets hold comma-separated numbers and
ranges with leading zeros kept; several brackets in one name multiply out.
"""

import re
from collections.abc import Iterable, Iterator

from fabricctl.errors import DataError

MAX_HOSTS = 65_536  # MAX_SLURM_NODES in slurm's own sources

_PART = re.compile(r"([^\[\],\s]*)\[([0-9,\-]+)\]")
_RANGE = re.compile(r"(\d{1,9})(?:-(\d{1,9}))?")


def expand(text: str) -> list[str]:
    """Names in the order given. Raises :class:`DataError` on anything that is not a host list."""
    hosts: list[str] = []
    for item in _split(text):
        for host in _expand_item(item, text):
            hosts.append(host)
            if len(hosts) > MAX_HOSTS:
                raise DataError(f"host list {text[:60]!r}: more than {MAX_HOSTS} hosts")
    return hosts


def fold(hosts: Iterable[str]) -> str:
    """The short form, sorted by name and number, without repeats: ``n[1-3],x``."""
    groups: dict[tuple[str, int, str], set[int]] = {}
    plain: set[str] = set()
    for host in hosts:
        match = re.fullmatch(r"(.*?)(\d{1,9})(\D*)", host)
        if match is None:
            plain.add(host)
            continue
        prefix, digits, suffix = match.groups()
        # A number without leading zeros may grow in width within one range (n9, n10).
        width = len(digits) if digits.startswith("0") and len(digits) > 1 else 0
        groups.setdefault((prefix, width, suffix), set()).add(int(digits))
    _merge_padded(groups)
    folded = [_fold_group(key, sorted(numbers)) for key, numbers in groups.items()]
    return ",".join(sorted([*plain, *folded], key=_natural))


def _split(text: str) -> Iterator[str]:
    """Cuts at the commas outside brackets."""
    depth, begin = 0, 0
    for at, char in enumerate(text):
        if char == "[":
            depth += 1
        elif char == "]":
            depth -= 1
        elif char == "," and depth == 0:
            yield text[begin:at]
            begin = at + 1
        if depth not in (0, 1):
            raise DataError(f"host list {text[:60]!r}: brackets do not match")
    if depth:
        raise DataError(f"host list {text[:60]!r}: brackets do not match")
    if text:
        yield text[begin:]


def _expand_item(item: str, text: str) -> Iterator[str]:
    match = _PART.match(item)
    if match is None:
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", item):
            raise DataError(f"host list {text[:60]!r}: {item[:40]!r} is not a host name")
        yield item
        return
    prefix, ranges = match.groups()
    rest = item[match.end() :]
    if not re.fullmatch(r"[A-Za-z0-9._-]*", prefix):
        raise DataError(f"host list {text[:60]!r}: {prefix[:40]!r} is not a host name")
    for number in _numbers(ranges, text):
        head = prefix + number
        if "[" in rest:
            yield from _expand_item(head + rest, text)
        elif re.fullmatch(r"[A-Za-z0-9._-]*", rest):
            yield head + rest
        else:
            raise DataError(f"host list {text[:60]!r}: {rest[:40]!r} is not a host name")


def _numbers(ranges: str, text: str) -> Iterator[str]:
    for part in ranges.split(","):
        match = _RANGE.fullmatch(part)
        if match is None:
            raise DataError(f"host list {text[:60]!r}: {part[:40]!r} is not a range")
        first, last = match.group(1), match.group(2) or match.group(1)
        if not 0 <= int(last) - int(first) < MAX_HOSTS:
            raise DataError(f"host list {text[:60]!r}: range {part!r} is empty or too long")
        for number in range(int(first), int(last) + 1):
            yield str(number).zfill(len(first))


def _merge_padded(groups: dict[tuple[str, int, str], set[int]]) -> None:
    """``n08, n09, n10`` is one range: numbers as wide as a padded group belong to it."""
    for prefix, width, suffix in [key for key in groups if key[1]]:
        unpadded = groups.get((prefix, 0, suffix), set())
        same = {number for number in unpadded if len(str(number)) == width}
        groups[prefix, width, suffix] |= same
        unpadded -= same
        if not unpadded:
            groups.pop((prefix, 0, suffix), None)


def _fold_group(key: tuple[str, int, str], numbers: list[int]) -> str:
    prefix, width, suffix = key
    ranges: list[tuple[int, int]] = []
    for number in numbers:
        if ranges and ranges[-1][1] == number - 1:
            ranges[-1] = (ranges[-1][0], number)
        else:
            ranges.append((number, number))
    texts = [f"{a:0{width}d}" if a == b else f"{a:0{width}d}-{b:0{width}d}" for a, b in ranges]
    if len(numbers) == 1:
        return prefix + texts[0] + suffix
    return f"{prefix}[{','.join(texts)}]{suffix}"


def _natural(name: str) -> list[tuple[int, int, str]]:
    return [
        (0, int(part), part) if part.isdigit() else (1, 0, part)
        for part in re.findall(r"\d+|\D+", name)
    ]
