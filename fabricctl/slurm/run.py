"""Running Slurm's commands: a fixed environment, a time-out, and errors that say what to do."""

import os
import re
import shlex
import subprocess
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from fabricctl.errors import SlurmError

# Slurm's own MessageTimeout is 10 s by default and some commands try more than once.
TIMEOUT_S = 30.0

# Variables of Slurm that say where the cluster is. All others (SQUEUE_FORMAT, SLURM_TIME_FORMAT,
# SLURM_CLUSTERS, SLURM_JSON, ...) change what the commands print, and are left out.
_KEPT = ("SLURM_CONF", "SLURM_CONF_SERVER", "SLURM_JWT", "SLURM_SACK_SOCKET", "SLURM_SACK_KEY")
_DROPPED = re.compile(
    r"(SLURM|SQUEUE|SINFO|SACCT|SACCTMGR|SCONTROL|SCANCEL|SBATCH|SALLOC|LC)_|LANG"
)

# What Slurm prints (tests/data/slurm has it, recorded) and what to do about it; the first counts.
_HINTS = (
    (r"configuration source", "set SLURM_CONF, or run this on a host of the cluster"),
    (r"accounting storage is disabled", "set AccountingStorageType=accounting_storage/slurmdbd"),
    (r"talking to the database|persistent connection", "is slurmdbd up? see: sacctmgr ping"),
    (r"[Mm]unge|authentication", "is munged up, with the cluster's key? see: munge -n | unmunge"),
    (r"[Uu]nable to contact|Connection refused", "is slurmctld up? see: scontrol ping"),
    (r"Invalid user id|[Pp]ermission denied", "run this as root or SlurmUser"),
    (r"[Ii]nvalid node name", "see: sinfo -N"),
    (r"data_parser|[Jj][Ss][Oo][Nn]", "this Slurm lacks JSON: install its serializer plugin"),
)


@dataclass(frozen=True)
class Answer:
    """What a command said."""

    status: int
    stdout: str
    stderr: str


Runner = Callable[[Sequence[str]], Answer]


def environment(environ: Mapping[str, str]) -> dict[str, str]:
    """The environment for Slurm's commands: C locale, UTC, times as seconds since 1970."""
    kept = {k: v for k, v in environ.items() if k in _KEPT or not _DROPPED.match(k)}
    # Slurm shortens array task lists to 64 characters unless SLURM_BITSTR_LEN says otherwise.
    ours = {"LC_ALL": "C", "TZ": "UTC", "SLURM_TIME_FORMAT": "%s", "SLURM_BITSTR_LEN": "0"}
    return {**kept, **ours}


def run(argv: Sequence[str], timeout_s: float = TIMEOUT_S) -> Answer:
    """Runs a command of Slurm; raises :class:`SlurmError` only when it cannot be run at all."""
    named = os.environ.get("SLURM_CONF")
    if named and not Path(named).exists():
        # Slurm would look for it again every second, for a minute.
        raise SlurmError(f"{argv[0]}: SLURM_CONF={named}: no such file: correct or unset it")
    try:
        done = subprocess.run(
            argv,
            env=environment(os.environ),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=timeout_s,
            check=False,
        )
    except FileNotFoundError:
        raise SlurmError(
            f"{argv[0]}: no such command: install Slurm's client package, or put it into PATH"
        ) from None
    except subprocess.TimeoutExpired:
        raise SlurmError(
            f"{shlex.join(argv)}: no answer within {timeout_s:g} s: is slurmctld up? "
            "see: scontrol ping"
        ) from None
    except OSError as error:
        raise SlurmError(f"{argv[0]}: cannot be run: {error.strerror}") from None
    return Answer(
        done.returncode,
        done.stdout.decode("utf-8", "backslashreplace"),
        done.stderr.decode("utf-8", "backslashreplace"),
    )


def failure(argv: Sequence[str], answer: Answer) -> SlurmError:
    """The error for an answer that says no."""
    lines = [line for line in (answer.stderr or answer.stdout).splitlines() if line.strip()]
    said = lines[-1].strip() if lines else f"ended with status {answer.status} and said nothing"
    # The cause often stands above the last line, so the hint looks at all of them.
    hint = next((hint for pattern, hint in _HINTS if re.search(pattern, answer.stderr)), "")
    return SlurmError(f"{shlex.join(argv)}: {said}{f': {hint}' if hint else ''}")
