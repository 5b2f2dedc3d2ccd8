"""What is to be done: which nodes, which command, how many at once. Never changed once written."""

import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields

from fabricctl.errors import DataError, UsageError

NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,39}")


@dataclass(frozen=True)
class Plan:
    """One maintenance. ``{node}`` in the commands stands for the node's name."""

    name: str
    nodes: tuple[str, ...]
    command: tuple[str, ...]
    budget: int  # nodes that may be out at once, of ``nodes``
    verify: tuple[str, ...] = ()  # runs before a node returns; status 0: it is fit
    groups: Mapping[str, str] = field(default_factory=dict)  # node -> switch or rack
    per_group: int = 0  # nodes of one group that may be out at once; 0: no bound
    expect_reboot: bool = False  # a node is back only when it has booted anew
    migrate: bool = False  # jobs that can go on on a spare are told to leave
    max_failures: int = 0  # above it no further node is begun
    command_timeout_s: float = 3600.0
    return_timeout_s: float = 900.0
    created_real_s: int = 0

    def __post_init__(self) -> None:
        if not NAME.fullmatch(self.name):
            raise UsageError(
                f"maintenance {self.name[:40]!r}: a name is a-z, 0-9, '.', '_' and '-', at most 40"
            )
        if not self.nodes:
            raise UsageError(f"maintenance {self.name}: no node is named")
        if not self.command:
            raise UsageError(f"maintenance {self.name}: no command is given: -- CMD ARG...")
        if not 1 <= self.budget <= len(self.nodes):
            raise UsageError(
                f"maintenance {self.name}: a budget of {self.budget} nodes: 1 to {len(self.nodes)}"
            )

    @property
    def reason(self) -> str:
        """What Slurm shows for a node that we drained; only a node with it is ever undrained."""
        return f"fabric: maintenance {self.name}"

    def to_json(self) -> str:
        return json.dumps(asdict(self), indent=1) + "\n"

    @classmethod
    def from_json(cls, text: str) -> "Plan":
        """Raises :class:`DataError` for what :meth:`to_json` did not write."""
        try:
            given = json.loads(text)
            known = {item.name for item in fields(cls)}
            for key in ("nodes", "command", "verify"):
                given[key] = tuple(given[key])
            return cls(**{key: value for key, value in given.items() if key in known})
        except (ValueError, KeyError, TypeError) as error:
            raise DataError(f"maintenance: plan.json cannot be read: {error}") from None


def parse_budget(words: str, nodes: int) -> int:
    """``3`` or ``10%`` of so many nodes, rounded down but at least one; :class:`UsageError`."""
    match = re.fullmatch(r"(\d{1,6})(%?)", words.strip())
    if match is None or not int(match.group(1)):
        raise UsageError(f"budget {words[:20]!r}: a number of nodes (3) or a share of them (10%)")
    number = int(match.group(1))
    if not match.group(2):
        return number
    if number > 100:
        raise UsageError(f"budget {words}: above 100 %")
    return max(1, nodes * number // 100)
