"""Commands about a running job that were given elsewhere go on on one of its nodes."""

import os
import re
import subprocess
import sys
from collections.abc import Sequence

from fabricctl.errors import NotFoundError, SlurmError

_HOP = "FABRICCTL_JOB_HOP"  # set for the copy of this command on a node of the job

_ENDED = re.compile(r"srun: error: \S+: task 0: Exited with exit code \d+$")


def hop(job: int, words: Sequence[str]) -> None:
    """Runs ``fabricctl <words>`` on a node of the job, through an srun beside its steps.

    Ends this command, with its status, where that one failed. Raises :class:`NotFoundError` when
    this is such a copy already, :class:`SlurmError` when there is no way there.
    """
    if os.environ.get(_HOP):
        raise NotFoundError(f"job {job}: not a protected job of yours")
    argv = ["srun", f"--jobid={job}", "--overlap", "-N1", "-n1", "--mpi=none", "--input=none"]
    argv += [sys.argv[0], *words]
    here = {**os.environ, _HOP: "1"}
    ended = False
    with subprocess.Popen(
        argv, env=here, stderr=subprocess.PIPE, text=True, errors="replace"
    ) as srun:
        for line in srun.stderr or ():
            if _ENDED.match(line):
                ended = True
            else:
                sys.stderr.write(line)
                sys.stderr.flush()
    if srun.returncode and ended:
        sys.exit(srun.returncode)  # the command there has said why
    if srun.returncode:
        raise SlurmError(f"job {job}: could not be asked on one of its nodes (srun: see above)")
