"""What a program protects, as bytes: arrays in place, everything else pickled."""

import pickle
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from fabricctl.errors import DataError


@dataclass(frozen=True)
class Item:
    """One protected thing: ``save`` gives its bytes, ``load`` takes them back."""

    kind: str
    save: Callable[[], memoryview]
    load: Callable[[memoryview], None]
    # ("same",) or ("share", first row, rows, rows of all ranks); None: it is this rank's alone.
    of_whole: tuple[Any, ...] | None = None


@dataclass(frozen=True)
class Share:
    """An array that is rows ``first`` to ``first + len(array)`` of one of ``total`` rows, all
    ranks together: ``protect(heat=state.Share(heat, first, total))``."""

    array: Any
    first: int
    total: int

    def __post_init__(self) -> None:
        if not 0 <= self.first <= self.first + len(self.array) <= self.total:
            raise DataError(
                f"protect: rows {self.first} to {self.first + len(self.array)} of {self.total}"
            )


@dataclass(frozen=True)
class Same:
    """A thing that is the same on every rank; any rank's serves them all."""

    thing: Any


def item_of(name: str, thing: Any) -> Item:
    """Arrays (anything with a writable, contiguous buffer: numpy, array, bytearray, CPU tensors)
    are filled in place; objects with ``state_dict`` and ``load_state_dict`` (models, optimisers)
    and dicts are pickled; a Path is a file's content.

    :class:`Share` and :class:`Same` say how it belongs to what other ranks have.
    Raises :class:`DataError` for anything else.
    """
    if isinstance(thing, Same):
        return replace(item_of(name, thing.thing), of_whole=("same",))
    if isinstance(thing, Share):
        where = ("share", thing.first, len(thing.array), thing.total)
        return replace(item_of(name, thing.array), of_whole=where)
    if hasattr(thing, "state_dict") and hasattr(thing, "load_state_dict"):
        return Item("state", lambda: _pickled(thing.state_dict()), lambda view: _load(thing, view))
    if isinstance(thing, dict):
        return Item("dict", lambda: _pickled(thing), lambda view: _refill(thing, view))
    if isinstance(thing, Path):
        return Item("file", lambda: memoryview(thing.read_bytes()), lambda v: _write(thing, v))
    if hasattr(thing, "detach") and hasattr(thing, "numpy"):  # a tensor
        if thing.device.type == "cpu" and thing.is_contiguous():
            return _buffer(name, thing.detach().numpy())
        return Item(
            "tensor",
            lambda: _flat(name, thing.detach().cpu().contiguous().numpy()),
            lambda view: _copy_tensor(thing, view),
        )
    return _buffer(name, thing)


def _buffer(name: str, thing: Any) -> Item:
    view = _flat(name, thing)
    if view.readonly:
        raise DataError(f"protect {name!r}: it is read-only and could not be restored")
    # Taken anew each time: the object may have been resized meanwhile.
    return Item("buffer", lambda: _flat(name, thing), lambda data: _fill(name, thing, data))


def _flat(name: str, thing: Any) -> memoryview:
    try:
        view = memoryview(thing)
    except TypeError:
        raise DataError(
            f"protect {name!r}: {type(thing).__name__} is no array, tensor, dict, Path or object "
            "with state_dict(); put it into a dict"
        ) from None
    if not view.c_contiguous:
        raise DataError(f"protect {name!r}: not contiguous; protect the array that it is a view of")
    return view.cast("B") if view.nbytes else memoryview(bytearray())


def _fill(name: str, thing: Any, data: memoryview) -> None:
    into = _flat(name, thing)
    if into.nbytes != data.nbytes:
        raise DataError(f"restore {name!r}: {data.nbytes} bytes were saved, {into.nbytes} expected")
    into[:] = data


def _pickled(thing: Any) -> memoryview:
    return memoryview(pickle.dumps(thing, protocol=5))


def _load(thing: Any, data: memoryview) -> None:
    thing.load_state_dict(pickle.loads(data))  # noqa: S301 - the job's own, checked


def _refill(thing: dict[Any, Any], data: memoryview) -> None:
    given = pickle.loads(data)  # noqa: S301 - the job's own, checked
    thing.clear()
    thing.update(given)


def _write(path: Path, data: memoryview) -> None:
    fresh = path.with_name(f".{path.name}.restored")
    fresh.write_bytes(data)
    fresh.replace(path)


def _copy_tensor(thing: Any, data: memoryview) -> None:
    import torch

    flat = torch.frombuffer(bytearray(data), dtype=thing.dtype)
    thing.data.copy_(flat.reshape(thing.shape))
