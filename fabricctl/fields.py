"""The one text codec: ``key=value`` fields.

The job envelope (in the environment, joined by ``;``), requests to the node service, status
files and the messages between agents (joined by newlines) are all written this way; the C side
is ``spank_plugin/fields.c``. There is no quoting: a value holds neither control characters nor
the separator, and what does not fit is refused where it is written.

Whatever arrives is hostile until :func:`decode` has accepted it.
"""

import re
from collections.abc import Mapping

from fabricctl.errors import FieldsError

KEY = re.compile(r"[a-z][a-z0-9_]{0,31}")
_UNPRINTABLE = re.compile("[\x00-\x1f\x7f-\x9f\ud800-\udfff]")
MAX_FIELDS = 64  # the largest of our messages has 20
MAX_BYTES = 65_536  # a node list of 10,000 irregular names folds to less


def encode(fields: Mapping[str, str], separator: str = "\n") -> str:
    """Fields as one string, in the mapping's order, without a trailing separator.

    Raises :class:`FieldsError` for a key or value that :func:`decode` would refuse.
    """
    for key, value in fields.items():
        if not KEY.fullmatch(key):
            raise FieldsError(f"fields: key {key!r} is not [a-z][a-z0-9_]*, at most 32 long")
        if separator in value or not _printable(value):
            raise FieldsError(f"fields: value of {key!r} holds a control character or separator")
    text = separator.join(f"{key}={value}" for key, value in fields.items())
    _check_size(text, len(fields))
    return text


def decode(text: str, separator: str = "\n") -> dict[str, str]:
    """The fields of ``text``; one trailing separator is allowed.

    Raises :class:`FieldsError` on an unknown shape, a key given twice, or too much of it.
    """
    parts = text.removesuffix(separator).split(separator) if text else []
    _check_size(text, len(parts))
    fields: dict[str, str] = {}
    for part in parts:
        key, equals, value = part.partition("=")
        if not equals or not KEY.fullmatch(key):
            raise FieldsError(f"fields: {part[:40]!r} is not key=value")
        if key in fields:
            raise FieldsError(f"fields: key {key!r} is given twice")
        if not _printable(value):
            raise FieldsError(f"fields: value of {key!r} holds a control character")
        fields[key] = value
    return fields


def _printable(value: str) -> bool:
    """No control characters (C0, DEL, C1) and nothing that is not valid UTF-8 (a surrogate)."""
    return _UNPRINTABLE.search(value) is None


def _check_size(text: str, count: int) -> None:
    if count > MAX_FIELDS:
        raise FieldsError(f"fields: {count} fields, at most {MAX_FIELDS} are allowed")
    if len(text.encode("utf-8", "surrogatepass")) > MAX_BYTES:
        raise FieldsError(f"fields: more than {MAX_BYTES} bytes")
