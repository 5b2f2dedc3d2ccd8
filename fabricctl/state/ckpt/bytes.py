"""Copying and checksums at the speed of memory: libfabricstate.so, called without Python's lock."""

import ctypes
from collections.abc import Iterator
from functools import cache

from fabricctl import built

NAME = "libfabricstate.so"


@cache
def _library() -> ctypes.CDLL:
    library = ctypes.CDLL(str(built.find("state", NAME)))
    size, pointer, word = ctypes.c_size_t, ctypes.c_void_p, ctypes.c_uint32
    library.fabric_crc.argtypes, library.fabric_crc.restype = (word, pointer, size), word
    library.fabric_copy_crc.argtypes = (pointer, pointer, size, word)
    library.fabric_copy_crc.restype = word
    byte = ctypes.c_uint8
    library.fabric_gf_mul.argtypes, library.fabric_gf_mul.restype = (byte, byte), byte
    library.fabric_gf_inverse.argtypes, library.fabric_gf_inverse.restype = (byte,), byte
    library.fabric_gf_add.argtypes = (pointer, pointer, size, byte)
    library.fabric_gf_add.restype = None
    library.fabric_xor.argtypes, library.fabric_xor.restype = (pointer, pointer, size), None
    return library


def _address(view: memoryview) -> int:
    """Where a buffer lies, also a read-only one."""
    return ctypes.addressof(_Buffer.of(view))


class _Buffer:
    """Py_buffer's first field, through the C interface: ctypes refuses read-only buffers."""

    @staticmethod
    def of(view: memoryview) -> ctypes.c_char:
        if not view.readonly:
            return ctypes.c_char.from_buffer(view)
        raw = (ctypes.c_ssize_t * 16)()
        api = ctypes.pythonapi
        if api.PyObject_GetBuffer(ctypes.py_object(view), ctypes.byref(raw), 0) != 0:
            raise BufferError("no contiguous buffer")
        address = raw[0]
        api.PyBuffer_Release(ctypes.byref(raw))  # the view still holds it
        return ctypes.c_char.from_address(address)


def crc(view: memoryview, before: int = 0) -> int:
    """CRC-32C, going on from ``before``."""
    if not view.nbytes:
        return before
    return int(_library().fabric_crc(before, _address(view), view.nbytes))


def copy_crc(to: memoryview, source: memoryview) -> int:
    """Copies ``source`` over ``to`` (same size) and gives the CRC-32C of what was read."""
    if to.nbytes != source.nbytes:
        raise ValueError(f"{source.nbytes} bytes do not fit {to.nbytes}")
    if not source.nbytes:
        return 0
    return int(_library().fabric_copy_crc(_address(to), _address(source), source.nbytes, 0))


def add(to: memoryview, source: memoryview, factor: int) -> None:
    """``to`` += ``factor`` * ``source`` in GF(256), over as many bytes as ``source`` has."""
    if source.nbytes > to.nbytes:
        raise ValueError(f"{source.nbytes} bytes do not fit {to.nbytes}")
    if not source.nbytes or not factor:
        return
    if factor == 1:
        _library().fabric_xor(_address(to), _address(source), source.nbytes)
    else:
        _library().fabric_gf_add(_address(to), _address(source), source.nbytes, factor)


def multiply(a: int, b: int) -> int:
    """In GF(256)."""
    return int(_library().fabric_gf_mul(a, b))


def inverse(a: int) -> int:
    """In GF(256); of 0 there is none."""
    if not a:
        raise ZeroDivisionError("GF(256): 0 has no inverse")
    return int(_library().fabric_gf_inverse(a))


def pieces(total: int, each: int) -> Iterator[tuple[int, int]]:
    """``(begin, end)`` of each piece."""
    for begin in range(0, total, each):
        yield begin, min(begin + each, total)
