"""How an audit reaches nodes: one Slurm job on all of them, or a way that the site has (ssh).

One job and a step for each question, not a job for each: what an audit finds (a full disk) can
drain a node at its first epilog, and of the nodes of the next job all would wait for that one.
"""

import contextlib
import math
import re
import select
import shlex
import shutil
import subprocess
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

from fabricctl import hostlist
from fabricctl.errors import DataError
from fabricctl.fleet import lines
from fabricctl.slurm.model import Node

TIMEOUT_S = 60.0
AT_ONCE = 64  # jobs that look for nodes where none begins
GRACE_S = 1.0  # for salloc to say by itself that it was refused
WAIT_S = 20  # for the last task, from the end of the first
JOB_MINUTES = 5
MEMORY = "512M"  # of a node, where Slurm counts it; a rank of the all-reduce takes a third
# Holds the job for as long as the audit lives and no longer: its stdin is the audit's.
_HOLD = "echo $SLURM_JOB_ID; exec cat > /dev/null"

Record = Mapping[str, object]


@dataclass(frozen=True)
class Job:
    """An allocation; ``nodes``: its own."""

    number: str
    nodes: tuple[str, ...]

    def step(self, names: Sequence[str]) -> list[str]:
        """Options of srun for one task on each of these."""
        return [f"--jobid={self.number}", f"--nodelist={hostlist.fold(names)}",
                f"--nodes={len(names)}", f"--ntasks={len(names)}", "--ntasks-per-node=1",
                "--cpus-per-task=1", "--overlap", "--mem=0"]  # fmt: skip


@dataclass
class Way:
    """``ask(names, words, given)`` runs ``fabricctl node WORDS`` on all at once: record by node."""

    ask: Callable[[Sequence[str], Sequence[str], str], dict[str, Record]]
    jobs: Sequence[Job] = ()
    why: Mapping[str, str] = field(default_factory=dict)  # node -> why it cannot be asked
    dead: frozenset[str] = frozenset()  # those of ``why`` where a job hangs that begins on others


@contextlib.contextmanager
def open_way(nodes: Sequence[Node], via: str | None, begin_s: float) -> Iterator[Way]:
    """``via``: a command before ours (``ssh {node}``), else Slurm jobs, each on the nodes where a
    job begins within ``begin_s``."""
    if via:
        yield Way(lambda names, words, given: _by_command(via, names, words, given))
        return
    with contextlib.ExitStack() as stack:
        jobs: list[Job] = []
        why = {node.name: "is in no partition" for node in nodes if not node.partitions}
        dead: set[str] = set()
        for partition, names in partitions_of(nodes).items():
            try:
                jobs.append(stack.enter_context(_job(partition, names, begin_s)))
                continue
            except _NotBegunError:
                bad = _not_begun(partition, names, begin_s)
            left = [name for name in names if name not in bad]
            try:
                if left:
                    jobs.append(stack.enter_context(_job(partition, left, begin_s)))
                    dead |= {name for name, error in bad.items() if error.hung}
            except _NotBegunError as error:
                bad |= dict.fromkeys(left, error)
            why |= {name: str(error) for name, error in bad.items()}
        yield Way(lambda names, words, given: _by_steps(jobs, names, words, given), jobs, why,
                  frozenset(dead))  # fmt: skip


class _NotBegunError(Exception):
    """Why a job did not begin: refused, or ``hung`` once it had its nodes."""

    def __init__(self, why: str, *, hung: bool = False) -> None:
        super().__init__(why)
        self.hung = hung


def _not_begun(partition: str, names: Sequence[str], begin_s: float) -> dict[str, _NotBegunError]:
    """Those on which no job begins, and why: a node that does not answer holds up its whole job."""
    size = -(-len(names) // AT_ONCE)
    groups = [names[at : at + size] for at in range(0, len(names), size)]

    def one(group: Sequence[str]) -> dict[str, _NotBegunError]:
        try:
            with _job(partition, group, begin_s):
                return {}
        except _NotBegunError as error:
            if len(group) > 1:
                return _not_begun(partition, group, begin_s)
            return {group[0]: error}

    with ThreadPoolExecutor(len(groups)) as pool:
        return {name: why for found in pool.map(one, groups) for name, why in found.items()}


@contextlib.contextmanager
def _job(partition: str, names: Sequence[str], begin_s: float) -> Iterator[Job]:
    """Raises :class:`_NotBegunError`."""
    argv = ["salloc", f"--partition={partition}", f"--nodelist={hostlist.fold(names)}",
            f"--nodes={len(names)}", "--ntasks-per-node=1", "--cpus-per-task=1", f"--mem={MEMORY}",
            f"--immediate={math.ceil(begin_s)}", "--no-kill", f"--time={JOB_MINUTES}",
            "--job-name=fabric-audit", "sh", "-c", _HOLD]  # fmt: skip
    try:
        made = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                                stderr=subprocess.PIPE, text=True, errors="replace",
                                start_new_session=True)  # fmt: skip
    except OSError as error:
        raise DataError(f"{argv[0]}: cannot be run: {error.strerror}") from None
    assert made.stdin and made.stdout and made.stderr
    with made:
        begun = bool(select.select([made.stdout], [], [], begin_s + GRACE_S)[0])
        number = made.stdout.readline().strip() if begun else ""
        try:
            if not begun:
                said = f"no job begins there within {begin_s:g} s (audit.begin_s)"
                raise _NotBegunError(said, hung=True)
            if not re.fullmatch(r"\d{1,10}", number):
                words = [line for line in made.stderr.read().splitlines() if "error" in line]
                why = (words[-1] if words else "its job did not begin")[:150]
                # Busy, drained meanwhile: refused. A controller that waits for the node: it hangs.
                raise _NotBegunError(why, hung="timed out" in why)
            yield Job(number, tuple(names))
        finally:
            made.stdin.close()
            if not begun:
                made.terminate()
            try:
                made.wait(TIMEOUT_S)
            except subprocess.TimeoutExpired:
                made.kill()


def _by_steps(
    jobs: Sequence[Job], names: Sequence[str], words: Sequence[str], given: str
) -> dict[str, Record]:
    program = shutil.which("fabricctl") or "fabricctl"
    calls = [
        ["srun", "--quiet", *job.step(mine), "--kill-on-bad-exit=0", "--no-kill", "--export=NONE",
         f"--wait={WAIT_S}", program, "node", *words]
        for job in jobs if (mine := [name for name in job.nodes if name in names])
    ]  # fmt: skip
    return _all(calls, names, given)


def _by_command(
    via: str, names: Sequence[str], words: Sequence[str], given: str
) -> dict[str, Record]:
    calls = [
        [*(word.replace("{node}", name) for word in shlex.split(via)), "fabricctl", "node", *words]
        for name in names
    ]
    return _all(calls, names, given)


def _all(calls: Sequence[Sequence[str]], names: Sequence[str], given: str) -> dict[str, Record]:
    found: dict[str, Record] = {}
    with ThreadPoolExecutor(max(1, min(128, len(calls)))) as pool:
        for output in pool.map(lambda argv: _run(argv, given), calls):
            found |= {node: each for node, each in lines.join(output).items() if node in names}
    return found


def _run(argv: Sequence[str], given: str) -> str:
    try:
        done = subprocess.run(argv, input=given, capture_output=True, text=True, errors="replace",
                              timeout=TIMEOUT_S, check=False)  # fmt: skip
    except subprocess.TimeoutExpired as error:
        return error.stdout.decode(errors="replace") if error.stdout else ""
    except OSError as error:
        raise DataError(f"{argv[0]}: cannot be run: {error.strerror}") from None
    return done.stdout


def partitions_of(nodes: Sequence[Node]) -> dict[str, list[str]]:
    """A partition for each node, few in all; a node without one is left out."""
    left = {node.name: set(node.partitions) for node in nodes if node.partitions}
    found: dict[str, list[str]] = {}
    while left:
        every = sorted({name for names in left.values() for name in names})
        best = max(every, key=lambda each: sum(each in names for names in left.values()))
        found[best] = [name for name, names in left.items() if best in names]
        left = {name: names for name, names in left.items() if best not in names}
    return found
