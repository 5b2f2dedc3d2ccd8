"""Our lines in the site's slurm.conf and plugstack.conf: put there and taken away, nothing else.

What is put in stands between two marks, so that taking it away gives the file back byte for byte.
A site's own Prolog, Epilog and PrologFlags stay in force: see :func:`slurm_lines`.
"""

import contextlib
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from fabricctl.errors import DataError, SystemRefusedError
from fabricctl.slurm import plugin

_BEGIN = "# >>> fabricctl site enable; fabricctl site disable takes this away"
_UNENDED = " (the line before had no end)"
_END = "# <<< fabricctl"
_BLOCK = re.compile(
    rf"(?P<unended>\n?){re.escape(_BEGIN)}(?P<mark>{re.escape(_UNENDED)})?\n"
    # Of a block whose end somebody took away only the next one is ours: what is between stays.
    rf"(?:(?!{re.escape(_BEGIN)}).)*?^{re.escape(_END)}(?:\n|\Z)",
    re.DOTALL | re.MULTILINE,
)
_INCLUDES_MAX = 100  # files; more is a loop
# Since 24.05 a key may be given several times and all its scripts run (its release notes);
# before, the last one wins.
_SEVERAL_SINCE = (24, 5)
SCRIPTS = {"Prolog": "prolog.d", "Epilog": "epilog.d"}


@dataclass(frozen=True)
class Edit:
    """What becomes of one file. ``before`` None: it is not there; ``after`` None: it goes.

    ``link``: the file is a link to that place, instead of a text.
    """

    path: Path
    before: str | None
    after: str | None
    link: Path | None = None


def with_block(text: str, lines: Sequence[str]) -> str:
    """``text`` with our lines at its end, instead of those of an earlier time."""
    text = without_block(text)
    unended = bool(text) and not text.endswith("\n")
    begin = f"\n{_BEGIN}{_UNENDED}" if unended else _BEGIN
    return text + "\n".join([begin, *lines, _END, ""])


def without_block(text: str) -> str:
    """``text`` as it was before our lines came."""
    return _BLOCK.sub(lambda found: "" if found["mark"] else found["unended"], text)


def settings(conf: Path) -> dict[str, list[str]]:
    """Lower-case key -> every value of slurm.conf and the files that it includes, ours left out.

    Raises :class:`DataError` for a file that cannot be read.
    """
    found: dict[str, list[str]] = {}
    waiting = [conf]
    for _ in range(_INCLUDES_MAX):
        if not waiting:
            return found
        file = waiting.pop(0)
        for line in without_block(_read(file)).splitlines():
            words = line.partition("#")[0].strip()
            if include := re.match(r"include\s+(\S+)", words, re.IGNORECASE):
                base = file.parent / include[1]
                waiting += sorted(Path("/").glob(str(base.relative_to("/"))))
            elif pair := re.match(r"(\w+)\s*=\s*(\S+)\s*$", words):
                found.setdefault(pair[1].lower(), []).append(pair[2].strip('"'))
    raise DataError(f"{conf}: more than {_INCLUDES_MAX} files are included: is it a loop?")


def slurm_lines(
    conf: Path, has: Mapping[str, Sequence[str]], version: tuple[int, int]
) -> tuple[list[str], list[Edit]]:
    """What slurm.conf needs beside what it has, and links to the site's own scripts.

    A script of the site goes on running: where Slurm takes one value only, ours is the directory,
    and the site's script gets a link there, ahead of ours by its name.
    """
    lines: list[str] = []
    links: list[Edit] = []
    for key, directory in SCRIPTS.items():
        ours = conf.parent / directory / f"fabric-{key.lower()}"
        own = list(has.get(key.lower(), ()))
        if any(_matches(ours, pattern) for pattern in own):
            continue
        if not own:
            lines.append(f"{key}={ours.parent}/*")
        elif version >= _SEVERAL_SINCE:
            lines.append(f"{key}={ours}")
        else:
            lines.append(f"{key}={ours.parent}/*")
            scripts = sorted(Path("/").glob(own[-1].lstrip("/")))
            for number, script in enumerate(scripts):
                link = ours.parent / f"00-site-{number:02d}-{script.name}"
                links.append(Edit(link, None, "", script))
    flags = [flag for value in has.get("prologflags", ())[-1:] for flag in value.split(",")]
    if not {"alloc", "contain", "x11"} & {flag.lower() for flag in flags}:
        lines.append("PrologFlags=" + ",".join([*flags, "Alloc"]))
    return lines, links


def enabling(conf: Path, version: tuple[int, int]) -> list[Edit]:
    """What to change so that Slurm uses us; empty when it does."""
    conf = conf.absolute()  # Slurm takes no other for scripts
    has = settings(conf)
    lines, edits = slurm_lines(conf, has, version)
    before = _read(conf)
    if lines:
        edits.append(Edit(conf, before, with_block(before, lines)))
    stack = _plugstack(conf, has)
    text = _read(stack) if stack.exists() else None
    if text is None or _loads(stack) is False:
        line = f"include {conf.parent}/plugstack.conf.d/fabric.conf"
        edits.append(Edit(stack, text, with_block(text or "", [line])))
    return [edit for edit in edits if not _done(edit)]


def disabling(conf: Path) -> list[Edit]:
    """What :func:`enabling` put there, taken away; empty when there is nothing."""
    conf = conf.absolute()
    edits = []
    for file in (conf, _plugstack(conf, settings(conf))):
        if not file.exists():
            continue
        before = _read(file)
        after: str | None = without_block(before)
        if after != before:
            edits.append(Edit(file, before, None if file != conf and not after else after))
    for directory in SCRIPTS.values():
        for link in sorted((conf.parent / directory).glob("00-site-*")):
            if link.is_symlink():
                edits.append(Edit(link, "", None, link.readlink()))
    return edits


def carry_out(edit: Edit) -> None:
    """Replaces the file in one step, with its owner and mode; raises
    :class:`SystemRefusedError`."""
    try:
        if edit.after is None:
            edit.path.unlink()
        elif edit.link is not None:
            edit.path.symlink_to(edit.link)
        else:
            _replace(edit.path, edit.after)
    except OSError as error:
        raise SystemRefusedError(f"{edit.path}: cannot be changed: {error.strerror}") from None


def _replace(path: Path, text: str) -> None:
    path = path.resolve()  # a link into a configuration repository stays one
    new = path.with_name(f".{path.name}.fabricctl")
    new.unlink(missing_ok=True)
    fd = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o644)
    try:
        with os.fdopen(fd, "w", encoding="utf-8", newline="") as stream:  # line ends as they are
            stream.write(text)
            stream.flush()
            with contextlib.suppress(FileNotFoundError):
                old = path.stat()
                os.fchown(stream.fileno(), old.st_uid, old.st_gid)
                os.fchmod(stream.fileno(), old.st_mode & 0o7777)
            os.fsync(stream.fileno())
        new.replace(path)
    except OSError:
        new.unlink(missing_ok=True)
        raise


def _plugstack(conf: Path, has: Mapping[str, Sequence[str]]) -> Path:
    named = has.get("plugstackconfig")
    return Path(named[-1]) if named else conf.parent / "plugstack.conf"


def _loads(stack: Path) -> bool:
    return plugin.find_line(stack) is not None


def _matches(ours: Path, pattern: str) -> bool:
    return any(ours.match(each) for each in pattern.split(",") if each)


def _done(edit: Edit) -> bool:
    if edit.link is not None:
        return edit.path.is_symlink() and edit.path.readlink() == edit.link
    return edit.before == edit.after


def _read(path: Path) -> str:
    try:
        return path.read_bytes().decode()
    except UnicodeDecodeError:
        raise DataError(f"{path}: not UTF-8 text: edit it by hand (docs/install.md)") from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from None
