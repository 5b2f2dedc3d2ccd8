"""Files that commands write for their caller."""

import os
from pathlib import Path

from fabricctl.errors import SystemRefusedError


def write_private(path: Path, text: str) -> None:
    """The file appears whole, readable by its owner alone."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        try:
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL
            with os.fdopen(os.open(temporary, flags, 0o600), "w", encoding="utf-8") as stream:
                stream.write(text)
            temporary.rename(path)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        raise SystemRefusedError(f"{path}: cannot be written: {error.strerror}") from None
