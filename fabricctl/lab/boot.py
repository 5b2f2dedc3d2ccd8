"""What a node is told when it starts: ``boot.json``, which the lab writes and its init reads."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from fabricctl.errors import LabError
from fabricctl.lab.units import Directory, Mount, Sandbox


@dataclass(frozen=True)
class Service:
    """A program that init starts, in the order given, and looks after."""

    name: str
    argv: tuple[str, ...]
    user: str = "root"
    restart: bool = False  # start it again when it ends, as systemd's Restart=always
    wait_for: str = ""  # boot goes on when this path exists
    wait_s: float = 30.0  # ... and fails when it does not by then
    env: Mapping[str, str] = field(default_factory=dict)
    sandbox: Sandbox | None = None  # as its systemd unit has it


@dataclass(frozen=True)
class Boot:
    """All that one node needs to know."""

    node: str
    state: Path  # the lab's state directory
    netns: Path
    code: tuple[Path, ...]
    cgroup_dirs: tuple[Path, ...]  # groups to enter
    cgroup_mounts: Mapping[str, str]  # see nodefs.enter
    services: tuple[Service, ...]
    mounts: tuple[Mount, ...] = ()
    directories: tuple[Directory, ...] = ()
    writable: tuple[Path, ...] = ()  # of this machine, seen under their own names

    def to_json(self) -> str:
        return json.dumps(asdict(self), indent=1, default=str)

    @classmethod
    def from_json(cls, text: str) -> "Boot":
        """Raises :class:`LabError` for what :meth:`to_json` did not write."""
        try:
            given = json.loads(text)
            services = tuple(Service(**_tuples(item)) for item in given["services"])
            return cls(
                node=given["node"],
                state=Path(given["state"]),
                netns=Path(given["netns"]),
                code=tuple(map(Path, given["code"])),
                cgroup_dirs=tuple(map(Path, given["cgroup_dirs"])),
                cgroup_mounts=given["cgroup_mounts"],
                services=services,
                writable=tuple(map(Path, given["writable"])),
                mounts=tuple(Mount(**_tuples(item)) for item in given["mounts"]),
                directories=tuple(Directory(**item) for item in given.get("directories", ())),
            )
        except (ValueError, KeyError, TypeError) as error:
            raise LabError(f"boot.json cannot be read: {error}") from None


def _tuples(item: Mapping[str, Any]) -> dict[str, Any]:
    """JSON has lists only, and nothing that says what an object was."""
    found: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in item.items()}
    if found.get("sandbox"):
        found["sandbox"] = Sandbox(**_tuples(found["sandbox"]))
    return found
