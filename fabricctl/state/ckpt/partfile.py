"""A part as a file: on a local disk or the shared file system.

::

    offset  size  what
         0     8  length n of the head, big-endian
         8     4  CRC-32C of the head, big-endian
        12     n  JSON: version, name, rank, ranks, step, used, crc (CRC-32C of the state), manifest
      12+n  used  the state

A file has its name when it is whole; a step is whole when all its ranks' files are there.
"""

import contextlib
import json
import os
import re
import shutil
import struct
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fabricctl.errors import DataError, UsageError
from fabricctl.state.ckpt import bytes as raw
from fabricctl.state.ckpt.items import Item

VERSION = 1
HEAD_MOST = 64 << 20
_LENGTHS = struct.Struct(">QI")
CALLED = re.compile(r"[A-Za-z0-9_-]{1,40}")  # a checkpoint's name
_NAME = re.compile(rf"(?P<name>{CALLED.pattern})\.(?P<step>[0-9]{{1,18}})")
_FILE = re.compile(r"(?P<rank>[0-9]{1,9})-of-(?P<ranks>[0-9]{1,9})\.part")


@dataclass(frozen=True)
class Head:
    """What a file says of itself."""

    name: str
    rank: int
    ranks: int
    step: int
    used: int
    crc: int
    manifest: list[Any]


def called(name: str) -> str:
    """A checkpoint's name; raises :class:`UsageError` for what can be none."""
    if CALLED.fullmatch(name) is None:
        raise UsageError(f"checkpoint: name={name[:60]!r}: 1 to 40 letters, digits, - and _")
    return name


def place(root: Path, name: str, rank: int, ranks: int, step: int) -> Path:
    """Where a part lies below a level's directory."""
    return root / f"{name}.{step}" / f"{rank}-of-{ranks}.part"


def write(root: Path, head: Head, state: Iterable[memoryview]) -> None:
    """Returns when it is on the disk; raises OSError."""
    path = place(root, head.name, head.rank, head.ranks, head.step)
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps({"version": VERSION, **head.__dict__}).encode()
    fresh = path.with_suffix(".new")
    try:
        with fresh.open("wb") as stream:
            stream.write(_LENGTHS.pack(len(text), raw.crc(memoryview(text))) + text)
            for view in state:
                stream.write(view)
            stream.flush()
            os.fsync(stream.fileno())
        fresh.replace(path)
    except OSError:  # where it is full a piece of it would keep it full
        with contextlib.suppress(OSError):
            fresh.unlink()
        raise


def save(
    root: Path, name: str, who: tuple[int, int, int], items: Mapping[str, Item], serial: str
) -> None:
    """The part of ``who``: rank, ranks, step. Raises OSError."""
    views, manifest, at, crc = [], [], 0, 0
    for key, item in items.items():
        view = item.save()
        manifest.append([key, item.kind, at, view.nbytes, raw.crc(view), item.of_whole, serial])
        views.append(view)
        at += view.nbytes
        crc = raw.crc(view, crc)
    write(root, Head(name, *who, at, crc, manifest), views)


def read_head(path: Path) -> tuple[Head, int]:
    """And where the state begins; raises OSError and :class:`DataError`."""
    with path.open("rb") as stream:
        begin = stream.read(_LENGTHS.size)
        length, crc = _LENGTHS.unpack(begin) if len(begin) == _LENGTHS.size else (0, 0)
        if not 0 < length <= HEAD_MOST:
            raise DataError(f"{path}: not a part of a checkpoint")
        text = stream.read(length)
    if raw.crc(memoryview(text)) != crc:
        raise DataError(f"{path}: its head's checksum is wrong")
    try:
        given = json.loads(text)
        if given.pop("version") != VERSION:
            raise DataError(f"{path}: of another version")
        head = Head(**given)
    except (ValueError, TypeError, KeyError, AttributeError):
        raise DataError(f"{path}: not a part of a checkpoint") from None
    return head, _LENGTHS.size + length


def read(path: Path) -> tuple[Head, memoryview]:
    """Raises OSError, and :class:`DataError` when it is not what was written."""
    head, begin = read_head(path)
    with path.open("rb") as stream:
        stream.seek(begin)
        state = memoryview(stream.read())
    if state.nbytes != head.used or raw.crc(state) != head.crc:
        raise DataError(f"{path}: its checksum is wrong")
    return head, state


def found(root: Path, name: str) -> Iterator[tuple[int, int, int]]:
    """``(rank, ranks, step)`` of every part of a checkpoint; those that cannot be read are none."""
    try:
        steps = list(root.iterdir())
    except OSError:
        return
    for path in steps:
        match = _NAME.fullmatch(path.name)
        if match is None or match["name"] != name:
            continue
        try:
            files = [_FILE.fullmatch(file.name) for file in path.iterdir()]
        except OSError:
            continue
        for file in files:
            if file is not None:
                yield int(file["rank"]), int(file["ranks"]), int(match["step"])


def whole_steps(root: Path, name: str) -> dict[int, int]:
    """Step -> number of ranks, of steps that all ranks have written."""
    there: dict[tuple[int, int], set[int]] = {}
    for rank, ranks, step in found(root, name):
        there.setdefault((step, ranks), set()).add(rank)
    return {
        step: ranks for (step, ranks), have in sorted(there.items()) if have == set(range(ranks))
    }


def keep_only(root: Path, name: str, steps: Iterable[int]) -> None:
    """Removes other steps of a checkpoint; what cannot be removed stays."""
    kept = set(steps)
    _remove(root, name, lambda step: step not in kept)


def thin(root: Path, name: str, keep: int) -> None:
    """Removes steps before the newest ``keep`` whole ones; later ones may be half written."""
    whole = sorted(whole_steps(root, name))[-keep:]
    if len(whole) == keep:
        _remove(root, name, lambda step: step < whole[0])


def _remove(root: Path, name: str, gone: Callable[[int], bool]) -> None:
    try:
        names = [path for path in root.iterdir() if _NAME.fullmatch(path.name)]
    except OSError:
        return
    for path in names:
        called, _, step = path.name.rpartition(".")
        if called == name and gone(int(step)) and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
