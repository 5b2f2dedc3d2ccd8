"""What a program protects, as bytes: arrays in place, everything else pickled."""

import pickle
from collections.abc import Callable, Mapping, Sequence
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
    # Raises DataError where ``load`` would find that these are not bytes of its size.
    check: Callable[[memoryview], None] = lambda _: None


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
        if _by_columns(thing.array):
            raise DataError(f"protect {name!r}: its rows do not lie together: order='C' is wanted")
        where = ("share", thing.first, len(thing.array), thing.total)
        return replace(item_of(name, thing.array), of_whole=where)
    if hasattr(thing, "state_dict") and hasattr(thing, "load_state_dict"):
        return Item("state", lambda: _pickled(thing.state_dict()), lambda view: _load(thing, view))
    if isinstance(thing, dict):
        return Item("dict", lambda: _pickled(thing), lambda view: _refill(thing, view))
    if isinstance(thing, Path):
        return Item("file", lambda: memoryview(thing.read_bytes()), lambda v: _write(thing, v))
    if hasattr(thing, "detach") and hasattr(thing, "numpy"):
        return _tensor(name, thing)
    return _buffer(name, thing)


def _tensor(name: str, thing: Any) -> Item:
    """Its memory is looked for anew each time: ``data`` may be another tensor's by then."""
    return Item(
        "buffer",
        lambda: _flat(name, _bytes_of(thing)),
        lambda data: _refill_tensor(name, thing, data),
        check=lambda data: _is_size(name, thing.numel() * thing.element_size(), data),
    )


def _bytes_of(tensor: Any) -> Any:
    """As an array, without a copy where it is whole in this machine's memory. Of bytes, because
    numpy does not know all types that tensors have."""
    import torch

    plain = tensor.detach().cpu().resolve_conj().resolve_neg().contiguous()
    return plain.reshape(-1).view(torch.uint8).numpy()


def _buffer(name: str, thing: Any) -> Item:
    view = _flat(name, thing)
    if view.readonly:
        raise DataError(f"protect {name!r}: it is read-only and could not be restored")
    # Taken anew each time: the object may have been resized meanwhile.
    return Item(
        "buffer by columns" if _by_columns(thing) else "buffer",
        lambda: _flat(name, thing),
        lambda data: _fill(name, thing, data),
        check=lambda data: _is_size(name, _flat(name, thing).nbytes, data),
    )


def _by_columns(thing: Any) -> bool:
    """Of numpy's arrays, those laid out as Fortran does."""
    flags: Any = getattr(thing, "flags", None)
    return bool(getattr(flags, "f_contiguous", False) and not flags.c_contiguous)


def _flat(name: str, thing: Any) -> memoryview:
    dtype = getattr(thing, "dtype", None)
    if getattr(dtype, "hasobject", False) or hasattr(thing, "mask"):
        what = "has a mask" if hasattr(thing, "mask") else "holds Python objects"
        raise DataError(f"protect {name!r}: an array that {what}; put it into a dict")
    if _by_columns(thing):
        thing = thing.T
    if getattr(dtype, "kind", "") in ("m", "M"):  # times, which no buffer can be of
        thing = thing.view("i8")
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


def _is_size(name: str, wanted: int, data: memoryview) -> None:
    if wanted != data.nbytes:
        raise DataError(f"restore {name!r}: {data.nbytes} bytes were saved, {wanted} expected")


def _fill(name: str, thing: Any, data: memoryview) -> None:
    _is_size(name, (into := _flat(name, thing)).nbytes, data)
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


def _refill_tensor(name: str, thing: Any, data: memoryview) -> None:
    import torch

    into = _bytes_of(thing)
    if thing.device.type == "cpu" and into.ctypes.data == thing.data_ptr():
        _fill(name, into, data)
    elif data.nbytes:
        flat = torch.frombuffer(bytearray(data), dtype=thing.dtype)
        thing.data.copy_(flat.reshape(thing.shape))


Fill = Callable[[], None]


def ready(items: Mapping[str, Item], manifest: Sequence[Sequence[Any]], view: memoryview) -> Fill:
    """What fills them; raises :class:`DataError` when other things were saved."""
    names = [part[0] for part in manifest]
    if sorted(names) != sorted(items):
        raise DataError(
            f"restore: {', '.join(sorted(names))} were saved, "
            f"{', '.join(sorted(items))} are protected"
        )
    for name, kind, begin, count, *_ in manifest:
        if kind != items[name].kind:
            raise DataError(f"restore {name!r}: {kind} was saved, {items[name].kind} is protected")
        items[name].check(view[begin : begin + count])

    def fill() -> None:
        for name, _, begin, count, *_ in manifest:
            items[name].load(view[begin : begin + count])

    return fill
