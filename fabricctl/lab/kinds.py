"""The table of faults: what each is called, what it hits, what can be chosen.

Everything that can be said about a fault before it happens is here; what carries it out is in
:mod:`fabricctl.lab.faults`.
"""

import difflib
import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from fabricctl.errors import UsageError
from fabricctl.lab.ports import Direction, Effect
from fabricctl.lab.spec import CONTROLLER, LabSpec
from fabricctl.lab.tc import Drop

Value = float | int | str


@dataclass(frozen=True)
class Option:
    """A choice of a fault; ``default`` gives its type, None means that it must be given."""

    kind: type
    doc: str
    default: Value | None = None
    low: float | None = None
    high: float | None = None
    words: tuple[str, ...] = ()


@dataclass(frozen=True)
class Kind:
    """One fault. ``targets``: node, interface, rail, service, match, filesystem, in order."""

    targets: tuple[str, ...]
    doc: str
    options: Mapping[str, Option] = field(default_factory=dict)


_DIRECTION = Option(
    str, "tx: what the node sends, rx: what it gets.", "both", words=("both", "tx", "rx")
)
_PERIOD = Option(float, "Seconds from one outage to the next.", 1.0, 0.02, 3600)
_DUTY = Option(float, "Share of the period that the outage lasts.", 0.5, 0.001, 0.999)
_RATE = Option(str, "Bits a second: 500kbit, 100mbit, 1gbit.")
_LINK = ("node", "interface")

KINDS: Mapping[str, Kind] = {
    "cut": Kind(_LINK, "The cable is pulled: the node loses carrier."),
    "blackhole": Kind(
        _LINK, "The switch forwards nothing; carrier stays.", {"direction": _DIRECTION}
    ),
    "flap": Kind(_LINK, "A blackhole that comes and goes.", {"period-s": _PERIOD, "duty": _DUTY}),
    "carrier-flap": Kind(_LINK, "Carrier goes and comes.", {"period-s": _PERIOD, "duty": _DUTY}),
    "loss": Kind(
        _LINK,
        "Packets are lost at random.",
        {"percent": Option(float, "Share lost.", None, 0.0001, 100), "direction": _DIRECTION},
    ),
    "loss-large": Kind(
        _LINK,
        "Packets above a size are lost, small ones pass.",
        {
            "above": Option(int, "Bytes, IP header included.", 1000, 64, 65535),
            "direction": _DIRECTION,
        },
    ),
    "rate": Kind(_LINK, "The link is slower.", {"rate": _RATE, "direction": _DIRECTION}),
    "cross": Kind(
        _LINK,
        "Others' traffic to this node queues in the switch.",
        {
            "load": Option(float, "Share of the link's rate that it takes.", 0.9, 0.01, 1.5),
            "rate": Option(str, "The link's rate where neither lab nor fault gives one.", ""),
        },
    ),
    "switch-dead": Kind(("interface",), "The switch loses power: no port has carrier."),
    "switch-silent": Kind(("interface",), "The switch hangs: carrier everywhere, nothing passes."),
    "node-kill": Kind(("node",), "The node crashes; its connections are still closed (FIN)."),
    "power-off": Kind(("node",), "The node loses power: nothing leaves it any more."),
    "freeze": Kind(("node",), "Every process of the node stands still."),
    "kill": Kind(("node", "service"), "kill -9 of a service; healing starts it."),
    "stop": Kind(("node", "match"), "SIGSTOP to processes by a word of their command line."),
    "disk-full": Kind(
        ("node", "filesystem"), "No block is left: `spool` (/var/spool/fabricctl) or `disk` (/var)."
    ),
    "shared-full": Kind((), "No block is left in the shared directory."),
    "clock": Kind(
        ("node",),
        "The node's virtual clock, which agents read in the lab (docs/lab.md).",
        {
            "offset-ns": Option(int, "Ahead of true time by this.", 0, -(10**15), 10**15),
            "drift-ppb": Option(float, "Runs fast by this.", 0.0, -500_000, 500_000),
            "wander-ppb": Option(float, "Random change of the drift, rms.", 0.0, 0, 100_000),
            "step-ns": Option(int, "Jumps by this ...", 0, -(10**15), 10**15),
            "step-after-s": Option(float, "... after so many seconds.", 0.0, 0, 10**6),
            "seed": Option(int, "Of the wander.", 1, 0, 2**31),
        },
    ),
}
FILESYSTEMS = ("spool", "disk")
_FLAPS = {"flap": Effect(unbridge=True), "carrier-flap": Effect(cut=True)}


@dataclass(frozen=True)
class Fault:
    """One fault, checked: of a known kind, on targets that exist, with all its options."""

    kind: str
    target: tuple[str, ...]
    options: Mapping[str, Value]

    @property
    def id(self) -> str:
        """Names it while it is in force; one kind hits one target once."""
        return ".".join([self.kind, *(re.sub(r"[^\w-]", "_", word) for word in self.target)])

    @property
    def flaps(self) -> bool:
        return self.kind in _FLAPS

    @property
    def sentence(self) -> str:
        """``cut n2 r0``, ``loss n2 r0 percent=1 direction=tx``."""
        given = [f"{name}={value}" for name, value in self.options.items()]
        return " ".join([self.kind, *self.target, *given])

    def effects(self, spec: LabSpec) -> dict[tuple[str, str], Effect]:
        """What it does to ports while it acts, by (node, interface)."""
        if self.kind in ("node-kill", "power-off"):
            return {(self.target[0], interface): Effect(cut=True) for interface in spec.interfaces}
        if self.kind == "switch-dead":
            return {(node, self.target[0]): Effect(cut=True) for node in spec.all_nodes}
        if self.kind == "switch-silent":
            return {(node, self.target[0]): Effect(unbridge=True) for node in spec.all_nodes}
        if KINDS[self.kind].targets != _LINK:
            return {}
        return {(self.target[0], self.target[1]): self._link_effect()}

    def _link_effect(self) -> Effect:
        direction: Direction = self.options.get("direction", "both")  # type: ignore[assignment]
        if self.kind in _FLAPS:
            return _FLAPS[self.kind]
        if self.kind == "cut":
            return Effect(cut=True)
        if self.kind == "blackhole" and direction == "both":
            return Effect(unbridge=True)
        if self.kind == "rate":
            return Effect(rate_bit_per_s=rate(str(self.options["rate"])), direction=direction)
        if self.kind == "cross":
            given = str(self.options["rate"])
            return Effect(rate_bit_per_s=rate(given) if given else 0, direction="rx")
        drop = Drop(
            percent=float(self.options.get("percent", 100)),
            above=int(self.options.get("above", 0)),
        )
        return Effect(drop=drop, direction=direction)


def rate(text: str) -> int:
    """``100mbit`` -> bits a second, as tc(8) writes them. Raises :class:`UsageError`."""
    match = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)(kbit|mbit|gbit)", text.lower())
    scale = {"kbit": 1e3, "mbit": 1e6, "gbit": 1e9}
    bits = round(float(match.group(1)) * scale[match.group(2)]) if match else 0
    if not 100_000 <= bits <= 400_000_000_000:
        raise UsageError(f"rate {text[:20]!r}: say it as 500kbit, 100mbit or 1gbit")
    return bits


def make_fault(
    spec: LabSpec, kind: str, target: tuple[str, ...], options: Mapping[str, object]
) -> Fault:
    """Checks all the words. Raises :class:`UsageError` with what is allowed."""
    if kind not in KINDS:
        raise UsageError(f"no fault {kind!r}{_near(kind, KINDS)}")
    roles = KINDS[kind].targets
    if len(target) != len(roles):
        wanted = " ".join([kind, *(role.upper() for role in roles)])
        raise UsageError(f"fault {kind}: {len(target)} targets given; it is: {wanted}")
    for role, word in zip(roles, target, strict=True):
        _check_target(spec, kind, role, word)
    known = KINDS[kind].options
    for name in options:
        if name not in known:
            raise UsageError(f"fault {kind}: no option {name!r}{_near(name, known)}")
    values = {name: _value(kind, name, item, options.get(name)) for name, item in known.items()}
    if kind in ("rate", "cross") and values["rate"]:
        rate(str(values["rate"]))
    return Fault(kind, target, values)


def _check_target(spec: LabSpec, kind: str, role: str, word: str) -> None:
    nodes = spec.all_nodes
    known: Mapping[str, tuple[str, ...]] = {
        "node": nodes,
        "interface": spec.interfaces,
        "filesystem": FILESYSTEMS,
    }
    if role in known and word not in known[role]:
        raise UsageError(f"fault {kind}: no {role} {word!r}; there are: {', '.join(known[role])}")
    if not word or len(word) > 200:
        raise UsageError(f"fault {kind}: the {role} has 1 to 200 characters")
    if kind == "clock" and word == CONTROLLER:
        raise UsageError("fault clock: the controller has no agent that would read it")


def _value(kind: str, name: str, option: Option, given: object) -> Value:
    if given is None:
        if option.default is None:
            raise UsageError(f"fault {kind}: needs --{name}: {option.doc}")
        return option.default
    numbers = (int, float) if option.kind is float else (option.kind,)
    if isinstance(given, bool) or not isinstance(given, numbers):
        raise UsageError(f"fault {kind}: {name} {given!r} is not of type {option.kind.__name__}")
    if option.words and given not in option.words:
        raise UsageError(f"fault {kind}: {name} {given!r}; one of: {', '.join(option.words)}")
    value: Value = option.kind(given)
    if isinstance(value, str) or option.low is None or option.high is None:
        return value
    if not option.low <= value <= option.high:  # NaN fails this too
        raise UsageError(
            f"fault {kind}: {name} {value} is outside {option.low:g} to {option.high:g}"
        )
    return value


def _near(name: str, known: Mapping[str, object]) -> str:
    close = difflib.get_close_matches(name, list(known), n=1)
    return f"; did you mean {close[0]!r}?" if close else f"; known are: {', '.join(known)}"
