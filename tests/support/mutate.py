"""Traces made bad: what disks, copies and people do to a file, each from a seed."""

import ctypes
import random
from collections.abc import Callable
from functools import cache
from pathlib import Path

import h5py
import numpy as np

_SIGNATURES = (b"OHDR", b"OCHK", b"FRHP", b"FHDB", b"FHIB", b"BTHD", b"BTLF", b"BTIN", b"FAHD",
               b"FADB", b"EAHD", b"EAIB", b"EADB", b"\x89HDF")  # fmt: skip
_LONGEST = 4096  # of a block whose checksum is looked for


def mutated(good: bytes, seed: int, path: Path) -> str:
    """Writes a bad copy of a good trace to ``path``; says what was done to it."""
    chance = random.Random(seed)
    if chance.random() < 0.25:
        path.write_bytes(good)
        forge = chance.choice(_FORGERIES)
        try:
            with h5py.File(path, "r+") as file:
                forge(file, chance)
        except (OSError, ValueError, RuntimeError, KeyError, TypeError):
            pass  # forged as far as HDF5 let it
        done = forge.__name__
    else:
        harm = chance.choice(_HARMS)
        path.write_bytes(harm(bytearray(good), chance))
        done = harm.__name__
    return f"{seed} {done}"


# --- what happens to bytes ---------------------------------------------------------------------


def bits_flip(data: bytearray, chance: random.Random) -> bytes:
    for _ in range(chance.choice((1, 1, 3, 30, 300))):
        data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
    return bytes(data)


def a_range_is_lost(data: bytearray, chance: random.Random) -> bytes:
    begin = chance.randrange(len(data))
    length = min(chance.choice((8, 64, 512, 4096)), len(data) - begin)
    data[begin : begin + length] = chance.choice((bytes(length), chance.randbytes(length)))
    return bytes(data)


def the_end_is_cut(data: bytearray, chance: random.Random) -> bytes:
    return bytes(data[: chance.randrange(len(data))])


def the_end_is_lost(data: bytearray, chance: random.Random) -> bytes:
    begin = chance.randrange(len(data))
    data[begin:] = bytes(len(data) - begin)
    return bytes(data)


def something_is_put_in(data: bytearray, chance: random.Random) -> bytes:
    at = chance.randrange(len(data))
    return bytes(data[:at] + chance.randbytes(chance.choice((1, 8, 512))) + data[at:])


def blocks_change_places(data: bytearray, chance: random.Random) -> bytes:
    length = chance.choice((16, 128, 1024))
    a, b = (chance.randrange(len(data) - length) for _ in range(2))
    data[a : a + length], data[b : b + length] = data[b : b + length], data[a : a + length]
    return bytes(data[: len(data)])


def foreign(data: bytearray, chance: random.Random) -> bytes:
    return chance.choice((b"", b"\x89HDF", chance.randbytes(3000), b"PK\x03\x04" + data, b"{}\n"))


def checksums_are_right(data: bytearray, chance: random.Random) -> bytes:
    """What a person does: metadata changed and its checksum made anew."""
    blocks = _blocks(bytes(data))
    for _ in range(chance.choice((1, 1, 2, 5))):
        begin, length = chance.choice(blocks)
        width = chance.choice((1, 1, 2, 4, 8))
        at = begin + 4 + chance.randrange(max(1, length - 4 - width))
        value = chance.choice((0, 1, 0xFF, 1 << 31, (1 << 64) - 1, chance.getrandbits(64)))
        data[at : at + width] = (value & ((1 << 8 * width) - 1)).to_bytes(width, "little")
        checksum = _lookup3(bytes(data[begin : begin + length]))
        data[begin + length : begin + length + 4] = checksum.to_bytes(4, "little")
    return bytes(data)


_HARMS: tuple[Callable[[bytearray, random.Random], bytes], ...] = (
    bits_flip, bits_flip, a_range_is_lost, the_end_is_cut, the_end_is_lost, something_is_put_in,
    blocks_change_places, foreign, checksums_are_right, checksums_are_right, checksums_are_right,
)  # fmt: skip


@cache
def _blocks(data: bytes) -> tuple[tuple[int, int], ...]:
    """Begin and length of the metadata blocks, found by their checksums."""
    found = []
    for signature in _SIGNATURES:
        at = data.find(signature)
        while at >= 0:
            for length in range(len(signature) + 4, min(_LONGEST, len(data) - at - 4)):
                stored = int.from_bytes(data[at + length : at + length + 4], "little")
                if stored and _lookup3(data[at : at + length]) == stored:
                    found.append((at, length))
                    break
            at = data.find(signature, at + 1)
    return tuple(found)


@cache
def _library() -> ctypes.CDLL:
    """HDF5 itself, as h5py has it loaded."""
    for line in Path("/proc/self/maps").read_text().splitlines():
        path = line.split()[-1]
        if "libhdf5-" in path or path.endswith(("libhdf5.so", "libhdf5_serial.so")):
            return ctypes.CDLL(path)
    raise OSError("HDF5 is not loaded")


def _lookup3(data: bytes) -> int:
    """HDF5's checksum of metadata (H5checksum.c)."""
    function = _library().H5_checksum_metadata
    function.restype = ctypes.c_uint32
    return int(function(data, ctypes.c_size_t(len(data)), ctypes.c_uint32(0)))


# --- what people do with h5py --------------------------------------------------------------------


def _node(file: h5py.File, chance: random.Random) -> h5py.Group:
    return file["nodes"][chance.choice(list(file["nodes"]))]


def _table(file: h5py.File, chance: random.Random) -> tuple[h5py.Group, str]:
    node = _node(file, chance)
    return node, chance.choice(list(node))


def links_lead_elsewhere(file: h5py.File, chance: random.Random) -> None:
    node, name = _table(file, chance)
    del node[name]
    node[name] = chance.choice(
        (h5py.ExternalLink("/dev/zero", "/"), h5py.SoftLink("/nodes"), h5py.SoftLink(node.name))
    )


def groups_go_round(file: h5py.File, chance: random.Random) -> None:
    node, name = _table(file, chance)
    del node[name]
    node[name] = file["nodes"]


def sizes_lie(file: h5py.File, chance: random.Random) -> None:
    node, name = _table(file, chance)
    kind = node[name].dtype
    del node[name]
    rows = chance.choice((1 << 20, 1 << 33, 1 << 50))
    chunk = chance.choice((1, 8192, 1 << 24))
    node.create_dataset(name, (rows,), kind, chunks=(chunk,), compression="gzip")


def zeros_expand(file: h5py.File, chance: random.Random) -> None:
    node, name = _table(file, chance)
    kind = node[name].dtype
    del node[name]
    rows = chance.choice((1 << 16, 1 << 21))
    made = node.create_dataset(name, (rows,), kind, chunks=(8192,), compression="gzip")
    made[...] = np.zeros(rows, kind)


def columns_are_others(file: h5py.File, chance: random.Random) -> None:
    node, name = _table(file, chance)
    rows = node[name][()]
    del node[name]
    kinds = chance.choice((["f8"], ["O"], ["S9"], ["u1"], ["<i2"], [">u8"], ["S0"]))
    names = [n for n in rows.dtype.names if chance.random() < 0.7] or ["x"]
    made = [(n, h5py.string_dtype() if kinds == ["O"] else kinds[0]) for n in names]
    node.create_dataset(name, data=np.zeros(len(rows), made), chunks=(8192,), maxshape=(None,))


def values_are_noise(file: h5py.File, chance: random.Random) -> None:
    node, name = _table(file, chance)
    rows = node[name][()]
    for column in chance.sample(list(rows.dtype.names), 1):
        kind = rows.dtype[column]
        rows[column] = np.frombuffer(chance.randbytes(len(rows) * kind.itemsize), kind)
    node[name][...] = rows


def attributes_are_odd(file: h5py.File, chance: random.Random) -> None:
    item = chance.choice((file, _node(file, chance)))
    name = chance.choice(list(item.attrs))
    del item.attrs[name]
    item.attrs[name] = chance.choice(
        (-1, 2**63 - 1, 1e308, float("nan"), "\x1b[2J" * 9, "n[1-99999]", "n[1-99999999999]", "",
         np.zeros(9), np.bytes_(b"\xff\xfe"), "x" * 50_000, "n[0-9][0-9][0-9][0-9][0-9][0-9]")
    )  # fmt: skip


def names_are_odd(file: h5py.File, chance: random.Random) -> None:
    file["nodes"].move(
        chance.choice(list(file["nodes"])),
        chance.choice(("\x1b]0;x\x07", "../../etc", "n1@", "-rf", "x" * 3000, "n\u202e1", "n 1")),
    )


def nodes_are_many(file: h5py.File, chance: random.Random) -> None:
    source = _node(file, chance)
    for nth in range(chance.choice((50, 400))):
        made = file["nodes"].create_group(f"m{nth}")
        for name, value in source.attrs.items():
            made.attrs[name] = value


def another_program_wrote_it(file: h5py.File, chance: random.Random) -> None:
    """HDF5 as others write it: a Slurm profile, a data frame, a model, names like ours."""
    for name in list(file):
        del file[name]
    if chance.random() < 0.5:
        for name in list(file.attrs):
            del file.attrs[name]
    kind = chance.randrange(4)
    if kind == 0:  # sh5util's shape
        tasks = file.create_group("Steps/0/Nodes/n1/Tasks/0")
        tasks.create_dataset("Task", data=np.zeros(9, [("ElapsedTime", "u8"), ("CPUTime", "f8")]))
    elif kind == 1:  # a data frame of pandas
        frame = file.create_group("df")
        frame.attrs["pandas_type"] = np.bytes_(b"frame_table")
        frame.create_dataset("table", data=np.zeros(5, [("index", "i8"), ("values", "f8", (3,))]))
    elif kind == 2:  # weights of a model
        file.create_dataset("nodes", data=np.zeros((64, 64), "f4"), chunks=(8, 8))
        file.create_dataset("names", data=["a", "b"], dtype=h5py.string_dtype())
    else:
        node = file.create_group("nodes/n1")
        node.create_dataset("host", data=np.array([file.ref, file.ref], h5py.ref_dtype))
        node.create_dataset("rail", data=h5py.Empty("f8"))


def data_lie_elsewhere(file: h5py.File, chance: random.Random) -> None:
    """Raw data in another file, or a window into one: what a reader must not follow."""
    node, name = _table(file, chance)
    kind, rows = node[name].dtype, len(node[name])
    del node[name]
    if chance.random() < 0.5:
        where = chance.choice(("/etc/passwd", "/dev/zero", "/dev/stdin", "bad.h5"))
        size = rows * kind.itemsize
        node.create_dataset(name, (rows,), kind, external=[(where, 0, max(1, size))])
    else:
        layout = h5py.VirtualLayout((rows,), kind)
        source = chance.choice((".", "bad.h5", "/etc/passwd"))
        layout[:] = h5py.VirtualSource(source, node.name + "/" + name, shape=(rows,), dtype=kind)
        node.create_virtual_dataset(name, layout)


_FORGERIES = (
    another_program_wrote_it, data_lie_elsewhere,
    links_lead_elsewhere, groups_go_round, sizes_lie, zeros_expand, columns_are_others,
    values_are_noise, attributes_are_odd, names_are_odd, nodes_are_many,
)  # fmt: skip
