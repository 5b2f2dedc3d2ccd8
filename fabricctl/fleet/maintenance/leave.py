"""Jobs leave a node that is to be maintained: their ranks go to a spare, then Slurm gets it back.

Only a job that is run by ``fabricctl run`` and has a spare left can (docs/checkpoints.md); of
others nothing is asked that could hurt them, and the node waits for their end.
"""

import subprocess
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

from fabricctl.errors import NotFoundError, SlurmError
from fabricctl.slurm.model import Job, Slurm, Step

ORDER_S = 60.0  # to tell a job
LOOK_S = 0.5
AT_ONCE = 16

# Tells a job to leave a node, as its user: (user, job, node) -> what went wrong; empty: nothing.
Order = Callable[[str, int, str], str]


def leave(node: str, slurm: Slurm, order: Order, limit_s: float) -> list[tuple[int, str]]:
    """For each job there: its id and why it stays; empty: it has left."""
    there = [job for job in slurm.jobs() if job.state == "RUNNING" and node in job.nodes]
    with ThreadPoolExecutor(AT_ONCE) as pool:
        words = pool.map(lambda job: _one(job, node, slurm, order, limit_s), there)
        return [(job.id, why) for job, why in zip(there, words, strict=True)]


def _one(job: Job, node: str, slurm: Slurm, order: Order, limit_s: float) -> str:
    try:
        before = slurm.steps(job.id)
        if why := _rooted(job, node, before):
            return why
        if why := order(job.user, job.id, node):
            return why
        known = {step.step for step in before}
        until_s = time.monotonic() + limit_s
        while time.monotonic() < until_s:
            if slurm.job(job.id).state != "RUNNING":
                return ""  # it ends, or has ended
            if moved(slurm.steps(job.id), known, node):
                slurm.release_node(job.id, node)
                return ""
            time.sleep(LOOK_S)
    except NotFoundError:
        return ""  # it ended long ago
    except SlurmError as error:
        return str(error)
    return f"its ranks did not leave within {limit_s:g} s: no spare, or no checkpoint"


def _rooted(job: Job, node: str, steps: Sequence[Step]) -> str:
    """Why its ranks cannot leave, or need not be asked to."""
    if len(job.nodes) < 2:
        return "it has no other node"
    if any(node in step.nodes and step.step in ("batch", "interactive") for step in steps):
        return "its script runs there"
    if not any(node in step.nodes and step.step.isdecimal() for step in steps):
        return "it has no ranks there now"
    return ""


def moved(steps: Sequence[Step], known: set[str], node: str) -> bool:
    """Its ranks run again, in a step that was not there before, and none on the node."""
    ranks = [step for step in steps if step.step.isdecimal()]
    return any(step.step not in known for step in ranks) and not any(
        node in step.nodes for step in ranks
    )


def by_user(user: str, job: int, node: str) -> str:
    """The job's own command, with its user's rights and no more."""
    argv = ["runuser", "-u", user, "--", "fabricctl", "job", "migrate", str(job), "--from", node]
    try:
        done = subprocess.run(argv, capture_output=True, text=True, errors="replace", cwd="/",
                              stdin=subprocess.DEVNULL, timeout=ORDER_S, check=False)  # fmt: skip
    except subprocess.TimeoutExpired:
        return f"it was not told within {ORDER_S:g} s"
    except OSError as error:
        return f"{argv[0]}: {error.strerror}"
    said = [line for line in done.stderr.splitlines() if line.strip()]
    return "" if not done.returncode else (said[-1][:200] if said else f"status {done.returncode}")
