"""The SPANK plugin as a Slurm finds it: plugstack.conf, and which Slurm the file was built for."""

import struct
from dataclasses import dataclass
from pathlib import Path

from fabricctl.errors import DataError

PLUGIN = "fabric.so"
_INCLUDES_MAX = 100  # files; more is a loop


@dataclass(frozen=True)
class PlugstackLine:
    """The line of plugstack.conf that loads our plugin (spank(8), CONFIGURATION)."""

    file: Path
    required: bool
    plugin: str  # a path, or a name below PluginDir
    arguments: dict[str, str]

    def find(self, plugin_dirs: str) -> Path:
        """The plugin's file: a name without a slash lies in one of Slurm's plugin directories."""
        if self.plugin.startswith("/"):
            return Path(self.plugin)
        places = [Path(place) / self.plugin for place in plugin_dirs.split(":") if place]
        return next((place for place in places if place.exists()), (places or [Path()])[0])


def find_line(plugstack: Path) -> PlugstackLine | None:
    """Our line, also in included files; None when there is none.

    Raises :class:`DataError` when a file cannot be read.
    """
    waiting = [plugstack]
    for _ in range(_INCLUDES_MAX):
        if not waiting:
            return None
        file = waiting.pop(0)
        try:
            lines = file.read_text(errors="replace").splitlines()
        except OSError as error:
            raise DataError(f"{file}: cannot be read: {error.strerror}") from None
        for line in lines:
            words = line.partition("#")[0].split()
            if len(words) > 1 and words[0] == "include":
                base = file.parent / words[1]  # an absolute name stays as it is
                waiting += sorted(Path(base.anchor).glob(str(base.relative_to(base.anchor))))
            elif len(words) > 1 and Path(words[1]).name == PLUGIN:
                pairs = (word.partition("=") for word in words[2:])
                given = {key: value for key, _, value in pairs}
                return PlugstackLine(file, words[0] == "required", words[1], given)
    raise DataError(f"{plugstack}: more than {_INCLUDES_MAX} files are included: is it a loop?")


def built_for(path: Path) -> tuple[int, int]:
    """The major and minor release of Slurm that the plugin's file was built for.

    That is what Slurm compares before it loads a plugin: the number in its symbol
    ``plugin_version`` (slurm/spank.h, SPANK_PLUGIN). Loading it to ask would need slurmd's symbols.
    Raises :class:`DataError` when the file is not a plugin, or cannot be read.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from None
    try:
        number = _symbol_u32(data, b"plugin_version")
    except (struct.error, IndexError, ValueError) as error:
        raise DataError(f"{path}: not a Slurm plugin: {error}") from None
    return number >> 16, number >> 8 & 0xFF


def _symbol_u32(data: bytes, wanted: bytes) -> int:
    """The 32-bit number at a dynamic symbol of a 64-bit ELF file of this byte order (elf(5))."""
    if data[:5] != b"\x7fELF\x02":
        raise ValueError("no 64-bit ELF file")
    at, entry_size, count = (
        *struct.unpack_from("=Q", data, 40),
        *struct.unpack_from("=2H", data, 58),
    )
    # name, type, flags, address, offset, size, link, info, alignment, size of an entry
    sections = [struct.unpack_from("=2I4Q2I2Q", data, at + i * entry_size) for i in range(count)]
    for section in sections:
        if section[1] != 11:  # SHT_DYNSYM
            continue
        names = sections[section[6]][4]
        for place in range(section[4], section[4] + section[5], section[9]):
            name, _info, _other, _index, address, _size = struct.unpack_from("=I2BH2Q", data, place)
            if data[names + name : data.index(b"\0", names + name)] != wanted:
                continue
            for _name, kind, _flags, begin, offset, size, *_rest in sections:
                if kind == 1 and begin <= address < begin + size:  # SHT_PROGBITS
                    return int(struct.unpack_from("=I", data, offset + address - begin)[0])
    raise ValueError(f"it has no {wanted.decode()}")
