"""Records what Slurm's commands answer to the adapter, as test data.

``python tests/support/slurm_record.py`` writes tests/data/slurm/<major.minor>/ anew for each suite
of chroot.py: index.json (one entry a call: argv, status, stderr, file) and the outputs as printed.
Inside a chroot's cluster the same file, called with ``inside``, does the asking.
"""

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).parents[2]
DATA = ROOT / "tests" / "data" / "slurm"
OUT = Path("/out")


def inside() -> None:
    """Sets a scene up, asks everything once, then everything that goes wrong."""
    import slurm_contract as contract

    from fabricctl.errors import FabricError
    from fabricctl.slurm.commands import CommandSlurm
    from fabricctl.slurm.run import Answer, run

    calls: list[dict[str, object]] = []

    def recorded(argv: Sequence[str], situation: str = "") -> Answer:
        answer = run(argv)
        words = re.sub(r"[^a-z0-9]+", "-", " ".join(argv[:5]).lower()).strip("-")[:50]
        name = f"{len(calls):02d}-{words}.out"
        (OUT / name).write_text(answer.stdout.replace(os.uname().release, "6.1.0"))
        calls.append({"argv": list(argv), "situation": situation, "status": answer.status,
                      "stderr": answer.stderr, "stdout": name})  # fmt: skip
        return answer

    slurm = CommandSlurm(recorded, mark=str)  # none: the calls are looked up by their words
    scene = next(contract.scene.__wrapped__({"commands": CommandSlurm()}))
    subprocess.run(["scontrol", "create", "reservation=upkeep", "users=root,ann",
                    "starttime=now+1hour", "duration=60", "nodes=n2", "flags=maint,ignore_jobs"],
                   check=True)  # fmt: skip
    time.sleep(6)  # the accounting hears of all
    slurm.jobs()
    slurm.nodes()
    slurm.partitions()
    slurm.reservations()
    slurm.configuration()
    now_s = int(time.time())
    (OUT / "when").write_text(str(now_s))
    slurm.usage(now_s - 3600, now_s)
    for job in slurm.jobs():
        if job.id in (scene.wide, scene.het) or job.array_task == 0:
            slurm.steps(job.id)
    for wrong in (
        lambda: slurm.job(99_999_999),
        lambda: slurm.set_node_state(["nosuch"], "drain", "x"),
        lambda: slurm.requeue(scene.held),
    ):
        try:
            wrong()
        except FabricError as error:
            print("recorded:", error)
    user = ["runuser", "-u", "ann", "--"]
    recorded([*user, "scontrol", "update", "NodeName=n1", "State=DRAIN", "Reason=x"], "as a user")
    conf = Path("/etc/slurm/slurm.conf").rename("/etc/slurm/away")
    recorded(["scontrol", "show", "node"], "no slurm.conf")
    conf.rename("/etc/slurm/slurm.conf")
    subprocess.run(["sh", "-c", "kill $(pidof munged); sleep 0.5"], check=True)
    recorded(["scontrol", "show", "node"], "no munged")
    subprocess.run(["setpriv", "--reuid", "munge", "--regid", "munge", "--init-groups", "munged"],
                   check=True)  # fmt: skip
    subprocess.run(["sh", "-c", "kill $(pidof slurmdbd); sleep 0.5"], check=True)
    recorded(["sacct", "--allusers"], "no slurmdbd")
    subprocess.run(["sh", "-c", "kill -9 $(pidof slurmctld); sleep 0.5"], check=True)
    recorded(["scontrol", "show", "node"], "no slurmctld")
    (OUT / "index.json").write_text(json.dumps(calls, indent=1, ensure_ascii=False) + "\n")


def main() -> None:
    """One directory a suite."""
    import chroot

    for suite in chroot.SUITES.values():
        with tempfile.TemporaryDirectory() as scratch:
            done = chroot.run(
                suite,
                ["/project/tests/support/slurm-cluster", "env", "PYTHONPATH=/project",
                 "PYTHONDONTWRITEBYTECODE=1", "python3", "/project/tests/support/slurm_record.py",
                 "inside"],
                timeout_s=300, out=Path(scratch),
            )  # fmt: skip
            print(done.stdout, done.stderr)
            done.check_returncode()
            target = DATA / suite.slurm
            shutil.rmtree(target, ignore_errors=True)
            shutil.copytree(scratch, target)


if __name__ == "__main__":
    inside() if sys.argv[1:] == ["inside"] else main()
