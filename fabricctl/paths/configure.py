"""The configuration that ``fabric-pathd run`` reads (``pathd/conf.h``): one line a word."""

import hashlib
import ipaddress
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from fabricctl import sharing
from fabricctl.errors import ConfigError
from fabricctl.paths.addresses import Rail
from fabricctl.records import JobStart
from fabricctl.sections import PathsConfig, ShareConfig

PORTS = 4  # candidates, tried in this order by every node
_PERSON = b"fabric-paths-1"  # keeps this key apart from all others made of the job's


@dataclass(frozen=True)
class Places:
    """Where fabric-pathd finds and leaves files."""

    job_dir: Path  # events, state, control, env
    leases: Path
    watch: Path  # the job is over when this is gone


def probe_key(job_key: bytes) -> bytes:
    """The 16 bytes under which fabric-pathd of one job talk (SipHash-2-4)."""
    return hashlib.blake2s(key=job_key, person=_PERSON[:8], digest_size=16).digest()


def ports(job: int, first: int, count: int) -> list[int]:
    """The job's candidate ports, all different, the same on every node. ``count`` >= 4."""
    found: list[int] = []
    turn = 0
    while len(found) < PORTS:
        digest = hashlib.blake2s(f"{job} {turn}".encode(), digest_size=8).digest()
        port = first + int.from_bytes(digest) % count
        found += [port] if port not in found else []
        turn += 1
    return found


def device_names(prefix: str, count: int) -> list[str]:
    """``fab0``, ``fab1``..."""
    return [f"{prefix}{index}" for index in range(count)]


def devices(given: PathsConfig, rails: Sequence[Rail]) -> list[str]:
    """What the ranks are steered to, in rail order."""
    if given.addresses == "own":
        return [rail.name for rail in rails]
    return device_names(given.device_prefix, len(rails))


def check_pools(given: PathsConfig) -> None:
    """Raises :class:`ConfigError` for pools that cannot hold fabric addresses."""
    if given.addresses == "own":
        return
    for key, text, kind in (
        ("pool4", given.pool4, ipaddress.IPv4Network),
        ("pool6", given.pool6, ipaddress.IPv6Network),
    ):
        if not text:
            continue
        try:
            pool = kind(text)
        except ValueError as error:
            raise ConfigError(f"paths.{key}: {error}") from None
        low, high = (4, 20) if pool.version == 4 else (48, 48)
        if not low <= pool.prefixlen <= high:
            wanted = "/48" if low == high else f"/{low} to /{high}"
            raise ConfigError(f"paths.{key}: {text}: the prefix length must be {wanted}")
    if not given.pool4 and not given.pool6:
        raise ConfigError("paths.pool4 and paths.pool6 are both empty: give one of them")


def share_lines(
    start: JobStart, given: ShareConfig, rails: Sequence[Rail], rates_mbit: Mapping[str, int]
) -> list[str]:
    """The job's share, if it has one, and what slows or reroutes it."""
    share = sharing.decide(
        start.envelope.share,
        map(sharing.parse_rule, given.rules),
        given.max_percent,
        partition=start.partition,
        qos=start.qos,
        account=start.account,
    )
    lines = [f"pace_us {given.pace_us}", f"reroute_us {given.reroute_us}"]
    for rail in rails:
        rate = rates_mbit.get(rail.name, 0)
        lines += [f"rate {rail.name} {rate * 1000}"] if rate else []
    if share:
        number = sharing.CLASSES.index(share.priority)
        lines.append(f"share {start.uid} {share.guarantee * 10} {share.ceiling * 10} {number}")
    return lines


def text(
    start: JobStart,
    given: PathsConfig,
    rails: Sequence[Rail],
    addresses: Mapping[str, str | None],
    places: Places,
    *,
    shares: Sequence[str] = (),
    off: str = "",
) -> str:
    """The whole configuration. ``addresses``: of every node of the job on the management
    network, None where its name could not be resolved. ``shares``: of :func:`share_lines`.
    ``off``: why this node cannot take part; it then only tells the others."""
    manage = addresses.get(start.node)
    lines = [
        f"job {start.job}",
        f"self {start.nodes.index(start.node)}",
        f"key {probe_key(start.envelope.key).hex()}",
        "ports " + " ".join(map(str, ports(start.job, given.port_first, given.port_count))),
        f"manage {manage}",
        f"dir {places.job_dir}",
        f"leases {places.leases}",
        f"watch {places.watch}",
        f"rto_min_ms {given.rto_min_ms}",
        f"interval_us {given.interval_us}",
        f"budget_pps {given.budget_pps}",
        f"ready_wait_s {given.ready_wait_s}",
        f"hold_ms {round(given.hold_s * 1000)}",
        f"hold_max_ms {round(given.hold_max_s * 1000)}",
    ]
    if given.addresses != "own":
        lines += [f"pool4 {given.pool4}"] if given.pool4 else []
        lines += [f"pool6 {given.pool6}"] if given.pool6 else []
    lines += [f"own {start.uid}"] if given.addresses != "fabric" else []
    names = device_names(given.device_prefix, len(rails))
    lines += [
        f"rail {rail.name} {name} {rail.ip4 or '-'} {rail.ip6 or '-'}"
        for rail, name in zip(rails, names, strict=True)
    ]
    lines += shares
    lines += [f"node {node} {addresses.get(node) or '-'}" for node in start.nodes]
    lines += [f"off {off[:60].replace(' ', '_')}"] if off else []
    return "\n".join([*lines, "end", ""])
