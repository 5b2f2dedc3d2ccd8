"""What travels between modules."""

import re
from dataclasses import dataclass
from typing import Literal, cast

from fabricctl import fields, hostlist, layout, sharing
from fabricctl.errors import DataError, EnvelopeError, FabricError

Mode = Literal["observe", "on"]
OnMissing = Literal["warn", "refuse"]
Steer = Literal["page", "ptp", "system"]

_KEY = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class Envelope:
    """What the plugin hands to prolog, steps, tasks and epilog (docs/envelope.md)."""

    mode: Mode
    key: bytes  # 32 random bytes, the job's secret
    spares: int = 0
    on_missing: OnMissing = "warn"
    sample_hz: float | None = None  # None: the site's agent.sample_hz
    share: str | None = None  # of the rails, as --fabric-share has it
    clock: Steer = "page"  # what follows the job's time, as --fabric-clock has it

    @classmethod
    def parse(cls, text: str) -> "Envelope":
        """From ``SPANK_FABRIC_ENVELOPE``; raises :class:`EnvelopeError`."""
        try:
            given = fields.decode(text, ";")
        except DataError as error:
            raise EnvelopeError(f"envelope: {error}") from None
        if given.get("v") != "1":
            raise EnvelopeError(f"envelope: version {given.get('v')!r}, this side knows 1")
        mode, key = given.get("mode"), given.get("key", "")
        spares, missing = given.get("spares", "0"), given.get("on_missing", "warn")
        if mode not in ("observe", "on"):
            raise EnvelopeError(f"envelope: mode {mode!r} is not observe or on")
        if not _KEY.fullmatch(key):
            raise EnvelopeError("envelope: key is not 64 lower-case hexadecimal digits")
        if not re.fullmatch(r"[0-9]{1,5}", spares):
            raise EnvelopeError(f"envelope: spares {spares!r} is not a number of nodes")
        if missing not in ("warn", "refuse"):
            raise EnvelopeError(f"envelope: on_missing {missing!r} is not warn or refuse")
        rate = given.get("sample_hz")
        if rate is not None and not (
            re.fullmatch(r"[0-9]{1,3}(\.[0-9]{1,3})?", rate) and 0.1 <= float(rate) <= 100
        ):
            raise EnvelopeError(f"envelope: sample_hz {rate!r} is not 0.1 to 100")
        share = given.get("share")
        try:
            if share is not None:
                sharing.parse_asked(share)
        except DataError as error:
            raise EnvelopeError(f"envelope: {error}") from None
        clock = given.get("clock", "page")
        if clock not in ("page", "ptp", "system"):
            raise EnvelopeError(f"envelope: clock {clock!r} is not page, ptp or system")
        return cls(
            mode="on" if mode == "on" else "observe",
            key=bytes.fromhex(key),
            spares=int(spares),
            on_missing="refuse" if missing == "refuse" else "warn",
            sample_hz=None if rate is None else float(rate),
            share=share,
            clock=cast("Steer", clock),
        )

    def text(self) -> str:
        """The inverse of :meth:`parse`."""
        given = {
            "v": "1",
            "mode": self.mode,
            "key": self.key.hex(),
            "spares": str(self.spares),
            "on_missing": self.on_missing,
        }
        if self.sample_hz is not None:
            given["sample_hz"] = f"{self.sample_hz:g}"
        if self.share is not None:
            given["share"] = self.share
        if self.clock != "page":
            given["clock"] = self.clock
        return fields.encode(given, ";")


@dataclass(frozen=True)
class JobStart:
    """A start request: one allocation begins on this node.

    Written by the prolog as ``key=value`` lines, the envelope's text last.
    """

    job: int
    uid: int
    user: str
    nodes: tuple[str, ...]
    node: str  # this node's NodeName
    cluster: str
    envelope: Envelope
    account: str = ""
    qos: str = ""  # empty where this Slurm does not tell prologs
    partition: str = ""  # whose own values of the configuration hold for the job

    @classmethod
    def parse(cls, text: str) -> "JobStart":
        """Raises :class:`DataError` (or :class:`EnvelopeError`) for what the prolog cannot have
        written; nothing of it is trusted before."""
        given = fields.decode(text)
        missing = [
            key for key in ("job", "uid", "user", "nodes", "node", "envelope") if not given.get(key)
        ]
        if missing:
            raise DataError(f"start request: {', '.join(missing)} missing")
        if not re.fullmatch(r"[0-9]{1,10}", given["uid"]):
            raise DataError(f"start request: uid {given['uid']!r} is not a number")
        if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.@-]{0,63}\$?", given["user"]):
            raise DataError(f"start request: user {given['user']!r} is not a user name")
        try:
            job, nodes = layout.job_number(given["job"]), hostlist.expand(given["nodes"])
        except FabricError as error:
            raise DataError(f"start request: {error}") from None
        if given["node"] not in nodes:
            raise DataError(f"start request: node {given['node']!r} is not one of the job's nodes")
        return cls(
            job=job,
            uid=int(given["uid"]),
            user=given["user"],
            nodes=tuple(nodes),
            node=given["node"],
            cluster=given.get("cluster", ""),
            partition=given.get("partition", ""),
            account=given.get("account", ""),
            qos=given.get("qos", ""),
            envelope=Envelope.parse(given["envelope"]),
        )

    def text(self) -> str:
        """The inverse of :meth:`parse`."""
        return fields.encode(
            {
                "job": str(self.job),
                "uid": str(self.uid),
                "user": self.user,
                "nodes": hostlist.fold(self.nodes),
                "node": self.node,
                "cluster": self.cluster,
                "partition": self.partition,
                "account": self.account,
                "qos": self.qos,
                "envelope": self.envelope.text(),
            }
        )
