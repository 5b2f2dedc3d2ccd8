"""Where a job was to be protected and is not: it is not lost because its protection is."""

import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from fabricctl import config, hostlist, layout
from fabricctl.errors import ConfigError, DataError, EnvelopeError, NotFoundError, SlurmError
from fabricctl.launch.placement import Placement
from fabricctl.launch.policy import Policy
from fabricctl.membership import Member
from fabricctl.records import Envelope

ANNOUNCED_S = 15.0  # until a node service that was away at the job's start has made it known
MASTER_PORT = "29500"  # PyTorch's own choice


def settings() -> config.Config:
    """A mistake in the site's file costs what it sets, and not the job."""
    try:
        return config.load()
    except ConfigError as error:
        sys.stderr.write(f"fabric: run: {error}; going on with the defaults\n")
        return config.Config()


def member_or_none(run_dir: Path, job: int) -> Member | None:
    """None: the job is not known on this node although its user asked for it; that was said.

    Raises :class:`NotFoundError` or :class:`DataError` where nobody had asked.
    """
    files, end_s = layout.NodeFiles(run_dir), time.monotonic() + ANNOUNCED_S
    while True:
        try:
            return Member.here(files, job)
        except (NotFoundError, DataError) as error:
            if "FABRIC_MODE" not in os.environ:
                raise
            if time.monotonic() >= end_s:
                sys.stderr.write(f"fabric: run: {error}\n")
                return None
        time.sleep(0.2)


def asked_spares() -> int:
    """As the job's envelope has it."""
    try:
        return Envelope.parse(os.environ.get("SLURM_SPANK_FABRIC_ENVELOPE", "")).spares
    except EnvelopeError:
        return 0


def become_srun(placed: Placement, policy: Policy, program: Sequence[str]) -> NoReturn:
    """Raises :class:`SlurmError`."""
    text = "not protected: the program runs under srun alone, nothing replaces what dies"
    sys.stderr.write(f"fabric: run: {text}\n")
    environment = dict(os.environ)
    if policy.live:  # what `state.live` finds the others by without us
        environment = {"MASTER_ADDR": placed.nodes[0], "MASTER_PORT": MASTER_PORT, **environment}
    argv = ["srun", f"--mpi={policy.mpi}", f"--nodelist={hostlist.fold(placed.nodes)}"]
    argv += [f"--nodes={len(placed.nodes)}", f"--ntasks={len(placed.hosts)}"]
    try:
        os.execvpe("srun", [*argv, *policy.options, *program], environment)  # noqa: S606 - no shell
    except OSError as error:
        raise SlurmError(f"srun: {error.strerror}") from None
