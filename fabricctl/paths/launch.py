"""From a start request to a running fabric-pathd: everything that may take its time, done in a
process of its own, which becomes fabric-pathd at the end."""

import concurrent.futures
import contextlib
import os
import subprocess
import sys
from collections.abc import Collection, Sequence
from pathlib import Path

from fabricctl import built
from fabricctl.config import Config
from fabricctl.errors import FabricError
from fabricctl.paths import addresses, configure, congestion, groups, steering, verbs
from fabricctl.paths.addresses import Rail
from fabricctl.paths.files import PathsFiles, write_off
from fabricctl.records import JobStart
from fabricctl.telemetry import cgroups, interfaces

NAME = "fabric-pathd"

RESOLVERS = 16
RESOLVE_WAIT_S = 20.0  # for all names; a node that cannot be resolved is heard of otherwise
CLEAN_WAIT_S = 120.0  # a job of 4,000 nodes left what took 21 s at a load of 18, 3 s of CPU
ONE_NODE = "the job has one node"
MOST_NODES, LONGEST_NAME = 8_000, 63  # MAX_PEERS of pathd/mover.h, CONF_NAME of pathd/conf.h


def resolve(nodes: Sequence[str], node: str) -> dict[str, str | None]:
    """Each node's address on the management network, of the same family as our own."""
    own = interfaces.lookup(node)
    six = bool(own) and ":" in own[0]
    found: dict[str, str | None] = dict.fromkeys(nodes)
    pool = concurrent.futures.ThreadPoolExecutor(min(RESOLVERS, len(nodes)))
    waiting = {pool.submit(interfaces.lookup, name): name for name in nodes}
    with contextlib.suppress(TimeoutError):
        for done in concurrent.futures.as_completed(waiting, RESOLVE_WAIT_S):
            same = [text for text in done.result() if (":" in text) == six]
            found[waiting[done]] = same[0] if same else None
    pool.shutdown(wait=False, cancel_futures=True)
    if own:
        found[node] = own[0]
    return found


def clean(files: PathsFiles, keep: Collection[int]) -> str:
    """Removes what no living fabric-pathd holds, but for jobs in ``keep``; its output.

    Raises :class:`~fabricctl.errors.FabricError` when the executable is missing.
    """
    if not files.leases.is_dir():
        return ""
    argv = [str(built.find("paths", NAME)), "clean", str(files.leases), *map(str, sorted(keep))]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=CLEAN_WAIT_S, check=False)
    return (done.stdout + done.stderr).strip()


def find_rails(config: Config, node: str) -> tuple[list[Rail], str]:
    """The rails, and why they are not enough; empty: they are."""
    try:
        configure.check_pools(config.paths)
        rails = addresses.find(config, node)
    except FabricError as error:
        return [], str(error)
    if len(rails) < 2:
        return [], f"{node} has {len(rails)} rail with an address, two are needed"
    return rails, ""


def steered(config: Config, rails: Sequence[Rail], ports: Sequence[verbs.Port]) -> dict[str, str]:
    """What leads libraries onto the rails. Nothing onto rails that were only found: what is sent
    there is moved all the same, and variables would come before the site's own choice in a
    library's configuration file. Off InfiniBand and RoCE ports that are down, in any case."""
    off = verbs.environment(ports, [rail.name for rail in rails])
    if not config.rails.interfaces and config.paths.addresses == "own":
        return off
    return steering.environment(configure.devices(config.paths, rails), bool(ports)) | off


def node_env(config: Config) -> str:
    """What an unprotected node's tasks are told in place of a job's own ``env``: they take part in
    jobs whose other nodes are led so. Empty where devices of our own would be needed for it, and
    where partitions differ."""
    every = (config, *map(config.for_partition, config.partitions))
    if any(each.agent.max_mode != "on" or not each.paths.enabled for each in every):
        return ""
    if not config.rails.interfaces or config.paths.addresses != "own":
        return ""
    rails, why_not = find_rails(config, "")
    return "" if why_not else steering.text(steered(config, rails, verbs.look()))


def too_large(nodes: Sequence[str]) -> str:
    """Why a job of these nodes cannot have link failover; empty: it can."""
    if len(nodes) > MOST_NODES:
        return f"the job has {len(nodes)} nodes, {MOST_NODES} at most can have link failover"
    longest = max(nodes, key=len)
    if len(longest) > LONGEST_NAME:
        return f"{longest}: link failover knows names of {LONGEST_NAME} characters at most"
    return ""


def become_pathd(start: JobStart, config: Config, keep: Collection[int]) -> None:
    """Does not return: this process becomes fabric-pathd, or ends with the reason in ``state``."""
    files = PathsFiles(config.node.run_dir)
    why = ""
    try:
        files.make(start.job)
        why = ONE_NODE if len(start.nodes) == 1 else too_large(start.nodes)
        if not why:
            _become(start, config, files, keep)
    except (OSError, FabricError, subprocess.TimeoutExpired) as error:
        why = str(error)
        sys.stderr.write(f"fabric: paths: {error}\n")
    with contextlib.suppress(OSError):
        write_off(files.state(start.job), start.job, why[:200].replace("\n", " "))
    os._exit(0 if why == ONE_NODE else 71)


def _become(start: JobStart, config: Config, files: PathsFiles, keep: Collection[int]) -> None:
    program = built.find("paths", NAME)
    clean(files, {*keep, start.job})
    rails, off = find_rails(config, start.node)
    found = resolve(start.nodes, start.node)
    if not found[start.node]:
        raise OSError(0, f"{start.node}: this node's own name cannot be resolved")
    if rails:
        variables = steered(config, rails, verbs.look())
        if not files.env(start.job).exists():
            prepared = files.job_dir(start.job) / ".env"
            prepared.write_text(steering.text(variables))
            prepared.chmod(0o644)
    places = configure.Places(
        files.job_dir(start.job), files.leases, config.node.run_dir / "jobs" / str(start.job)
    )
    shares = configure.share_lines(
        start,
        config.share,
        rails,
        {rail.name: config.share.rail_mbit or addresses.rate_mbit(rail.name) for rail in rails},
    )
    mounts = cgroups.parse_mounts(Path("/proc/self/mountinfo").read_text())
    shares += groups.line(mounts, start.node, start.job)
    shares += congestion.line(config.paths.congestion)
    text = configure.text(start, config.paths, rails, found, places, shares=shares, off=off)
    memory = os.memfd_create(NAME, 0)
    os.write(memory, text.encode())
    os.lseek(memory, 0, os.SEEK_SET)
    os.dup2(memory, 0)
    os.execv(program, [str(program), "run"])  # noqa: S606
