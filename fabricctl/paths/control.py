"""Requests to a running fabric-pathd (``pathd/control.c``)."""

import re
import socket
from collections.abc import Mapping
from pathlib import Path

from fabricctl import fields
from fabricctl.errors import NotFoundError, SystemRefusedError, UsageError

WAIT_S = 3.0
_ANSWER_BYTES = 65_536
_WHY = re.compile(r"[^;\x00-\x1f\x7f]{0,200}")


def check_why(why: str) -> None:
    """Raises :class:`UsageError` for a reason that cannot be recorded."""
    if not _WHY.fullmatch(why):
        raise UsageError("paths: a reason has at most 200 characters and no ';'")


def ask(control: Path, request: Mapping[str, str]) -> list[dict[str, str]]:
    """The answer's lines, each as fields.

    Raises :class:`NotFoundError` when nothing listens, :class:`UsageError` for what it refused.
    """
    check_why(request.get("why", ""))
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as link:
        link.bind("")  # an address of its own, for the answer
        link.settimeout(WAIT_S)
        try:
            link.connect(str(control))
            link.send(fields.encode(request).encode())
            answer = link.recv(_ANSWER_BYTES).decode()
        except (FileNotFoundError, ConnectionRefusedError):
            raise NotFoundError(f"{control}: no fabric-pathd listens there") from None
        except PermissionError:
            raise SystemRefusedError(f"{control}: only root may ask; use sudo") from None
        except OSError as error:
            raise SystemRefusedError(f"{control}: no answer: {error}") from None
    lines = [fields.decode(line, ";") for line in answer.splitlines()]
    for line in lines:
        if "error" in line:
            raise UsageError(f"paths: {line['error']}")
    return lines
