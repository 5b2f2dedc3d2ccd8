"""Facts of many nodes: through a Slurm job on them, or through a way that the site has (ssh)."""

import json
import re
import shlex
import shutil
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

from fabricctl import hostlist
from fabricctl.errors import DataError
from fabricctl.fleet import lines
from fabricctl.fleet.overview import node_state
from fabricctl.slurm.model import Node
from fabricctl.slurm.topology import Switch

KEY = re.compile(r"[a-z][a-z0-9_]{0,31}(\.[A-Za-z0-9_.@:-]{1,64}){0,4}")
MAX_FACTS = 2000  # a node with 8 HCAs, 8 GPUs and 24 disks has 200
MAX_VALUE = 200
NODE_TIMEOUT_S = 60.0
AT_ONCE = 64  # of ways that the site has

Facts = Mapping[str, str]


def parse(line: str) -> tuple[str, dict[str, str]]:
    """``(node, facts)`` of a line of ``fabricctl node facts --json``; raises :class:`DataError`."""
    try:
        given = json.loads(line)
        node, facts = given["node"], given["facts"]
    except (ValueError, KeyError, TypeError):
        raise DataError(f"facts: {line[:60]!r} is not what `fabricctl node facts` prints") from None
    if not isinstance(node, str) or not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", node):
        raise DataError(f"facts: {str(node)[:60]!r} is not a node's name")
    return node, checked(facts, node)


def checked(facts: object, node: str) -> dict[str, str]:
    """Facts as they may come in; raises :class:`DataError`."""
    if not isinstance(facts, dict) or len(facts) > MAX_FACTS:
        raise DataError(f"facts of {node}: not at most {MAX_FACTS} keys and values")
    for key, value in facts.items():
        if not isinstance(key, str) or not KEY.fullmatch(key):
            raise DataError(f"facts of {node}: {str(key)[:60]!r} is not a key")
        if not isinstance(value, str) or len(value) > MAX_VALUE or not value.isprintable():
            raise DataError(f"facts of {node}: {key}: {str(value)[:60]!r} is not a short text")
    return facts


def reachable(nodes: Sequence[Node]) -> tuple[list[Node], dict[str, str]]:
    """Those on which a job can start now, and why the others cannot."""
    fit, why = [], {}
    for node in nodes:
        state = node_state(node)
        if state not in ("idle", "mixed", "allocated"):
            why[node.name] = f"is {state}"
        elif node.cpus_allocated >= node.cpus:
            why[node.name] = "is full"
        else:
            fit.append(node)
    return fit, why


def srun_argv(nodes: Sequence[str], partition: str, program: str) -> list[str]:
    """One task a node; what it prints comes back."""
    names = hostlist.fold(nodes)
    return ["srun", "--quiet", f"--partition={partition}", f"--nodelist={names}",
            f"--nodes={len(nodes)}", "--ntasks-per-node=1", "--cpus-per-task=1", "--immediate=30",
            "--kill-on-bad-exit=0", "--no-kill", "--time=2", "--job-name=fabric-facts",
            "--export=NONE", "--mem=256M", program, "node", "facts", "--parts"]  # fmt: skip


def by_slurm(nodes: Sequence[Node]) -> tuple[dict[str, Facts], dict[str, str]]:
    """Facts by node, and why there are none of the others."""
    fit, why = reachable(nodes)
    program = shutil.which("fabricctl") or "fabricctl"
    groups: dict[str, list[str]] = {}
    for node in fit:
        if node.partitions:
            groups.setdefault(node.partitions[0], []).append(node.name)
        else:
            why[node.name] = "is in no partition"
    found: dict[str, Facts] = {}
    for partition, names in groups.items():
        answer = _run(srun_argv(names, partition, program), NODE_TIMEOUT_S + 0.05 * len(names))
        found |= dict(_lines(answer[0], why, names))
        for name in names:
            if name not in found:
                why.setdefault(name, answer[1] or "did not answer")
    return found, why


def by_way(nodes: Sequence[Node], way: str) -> tuple[dict[str, Facts], dict[str, str]]:
    """``way``: a command before ours, ``ssh {node}``."""
    found: dict[str, Facts] = {}
    why: dict[str, str] = {}

    def one(name: str) -> tuple[str, tuple[str, str]]:
        words = [word.replace("{node}", name) for word in shlex.split(way)]
        argv = [*words, "fabricctl", "node", "facts", "--parts"]
        return name, _run(argv, NODE_TIMEOUT_S)

    with ThreadPoolExecutor(AT_ONCE) as pool:
        for name, answer in pool.map(one, [node.name for node in nodes]):
            found |= dict(_lines(answer[0], why, [name]))
            if name not in found:
                why.setdefault(name, answer[1] or "did not answer")
    return found, why


def _run(argv: Sequence[str], timeout_s: float) -> tuple[str, str]:
    """Its output, and the last of its words when it failed."""
    try:
        done = subprocess.run(argv, capture_output=True, text=True, errors="replace",
                              stdin=subprocess.DEVNULL, timeout=timeout_s, check=False)  # fmt: skip
    except subprocess.TimeoutExpired as error:
        partial = error.stdout.decode(errors="replace") if error.stdout else ""
        return partial, f"no answer within {timeout_s:.0f} s"
    except OSError as error:
        return "", f"{argv[0]}: {error.strerror}"
    lines = done.stderr.strip().splitlines()
    return done.stdout, lines[-1][:200] if lines and done.returncode else ""


def _lines(
    output: str, why: dict[str, str], asked: Sequence[str]
) -> Iterator[tuple[str, Facts]]:  # fmt: skip
    for node, record in lines.join(output).items():
        if node not in asked:
            continue
        try:
            yield node, checked(record.get("facts"), node)
        except DataError as error:
            why[node] = str(error)


def slurm_facts(node: Node, switches: Sequence[Switch]) -> dict[str, str]:
    """What the controller knows of it."""
    leaf = next((each.name for each in switches if not each.level and node.name in each.nodes), "")
    facts = {"slurm.cpus": str(node.cpus), "slurm.memory_mib": str(node.memory_mib),
             "slurm.version": node.version or "", "slurm.features": ",".join(node.features),
             "slurm.switch": leaf}  # fmt: skip
    return {key: value for key, value in facts.items() if value}
