"""Commands about a running job that were given elsewhere go on on one of its nodes."""

import os
import subprocess
import sys
from collections.abc import Sequence

from fabricctl.errors import NotFoundError, SlurmError

_HOP = "FABRICCTL_JOB_HOP"  # set for the copy of this command on a node of the job


def hop(job: int, words: Sequence[str]) -> None:
    """Runs ``fabricctl <words>`` on a node of the job, through an srun beside its steps.

    Raises :class:`NotFoundError` when this is such a copy already, :class:`SlurmError` when it
    failed.
    """
    if os.environ.get(_HOP):
        raise NotFoundError(f"job {job}: not a protected job of yours")
    argv = ["srun", f"--jobid={job}", "--overlap", "-N1", "-n1", "--mpi=none", "--input=none"]
    argv += [sys.argv[0], *words]
    done = subprocess.run(argv, env={**os.environ, _HOP: "1"}, check=False)
    if done.returncode:
        raise SlurmError(f"job {job}: could not be asked on one of its nodes (srun: see above)")
