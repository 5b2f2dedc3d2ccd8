"""Faults in force and the log of all faults: files that survive whoever wrote them."""

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from fabricctl.errors import LabError
from fabricctl.lab.kinds import Fault
from fabricctl.lab.spec import LabPaths
from fabricctl.lab.stamp import Stamp

LOG_VERSION = 1


@dataclass(frozen=True)
class InForce:
    """A fault that was put in and not yet healed."""

    fault: Fault
    acting: bool  # False while a flapping fault pauses
    begun: Stamp | None = None  # None: it is being put in, or whoever did so died
    until_mono_ns: int | None = None  # when it heals by itself
    actor: tuple[int, int] | None = None  # pid and start time (ticks) of what keeps it going


class Registry:
    """The files ``faults/<id>.json`` and ``faults.jsonl`` of one lab."""

    def __init__(self, paths: LabPaths) -> None:
        self._paths = paths

    def all(self) -> list[InForce]:
        """In the order in which they were put in."""
        read = (self._read(path) for path in self._paths.faults.glob("*.json"))
        found = [item for item in read if item is not None]
        return sorted(found, key=lambda item: item.begun.mono_ns if item.begun else 1 << 63)

    def get(self, fault_id: str) -> InForce | None:
        return self._read(self._path(fault_id))

    def put(self, item: InForce) -> None:
        path = self._path(item.fault.id)
        new = path.with_suffix(".new")
        new.write_text(json.dumps(asdict(item)))
        new.replace(path)

    def remove(self, fault_id: str) -> None:
        self._path(fault_id).unlink(missing_ok=True)

    def _path(self, fault_id: str) -> Path:
        return self._paths.faults / f"{fault_id}.json"

    def _read(self, path: Path) -> InForce | None:
        """None: it has been healed."""
        try:
            given = json.loads(path.read_text())
            fault = given["fault"]
            return InForce(
                fault=Fault(fault["kind"], tuple(fault["target"]), fault["options"]),
                acting=given["acting"],
                begun=Stamp.of(given["begun"]) if given["begun"] else None,
                until_mono_ns=given["until_mono_ns"],
                actor=tuple(given["actor"]) if given["actor"] else None,
            )
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise LabError(f"{path}: not a fault's record ({error})") from None

    def log(
        self, event: str, fault: Fault, stamp: Stamp, cause: str, **more: object
    ) -> dict[str, Any]:
        """Adds a line: ``fault``, ``heal``, or ``down`` and ``up`` within a flapping fault."""
        entry = {
            "v": LOG_VERSION,
            "event": event,
            "id": fault.id,
            "kind": fault.kind,
            "target": list(fault.target),
            "options": dict(fault.options),
            "real_ns": stamp.real_ns,
            "mono_ns": stamp.mono_ns,
            "width_ns": stamp.width_ns,
            **asdict(stamp),
            "cause": cause,
            **more,
        }
        line = json.dumps(entry).encode() + b"\n"
        fd = os.open(
            self._paths.fault_log, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o644
        )
        try:
            os.write(fd, line)  # one write: lines of several writers do not mix
        finally:
            os.close(fd)
        return entry

    def entries(self) -> list[dict[str, Any]]:
        """The log, oldest first."""
        try:
            with self._paths.fault_log.open() as lines:
                return [json.loads(line) for line in lines]
        except FileNotFoundError:
            return []


def describe(item: InForce) -> Mapping[str, object]:
    """A fault in force for `lab status --json`."""
    return {
        "id": item.fault.id,
        "kind": item.fault.kind,
        "target": list(item.fault.target),
        "options": dict(item.fault.options),
        "acting": item.acting,
        "begun_mono_ns": item.begun.mono_ns if item.begun else None,
        "begun_real_ns": item.begun.real_ns if item.begun else None,
        "until_mono_ns": item.until_mono_ns,
    }
