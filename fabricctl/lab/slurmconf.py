"""slurm.conf and cgroup.conf for the Slurm and the control groups that this machine has."""

import re
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from fabricctl.errors import LabError
from fabricctl.lab.spec import CONTROLLER, MANAGEMENT, LabSpec


@dataclass(frozen=True)
class SlurmVersion:
    """``major.minor`` as in 22.05."""

    major: int
    minor: int

    @property
    def has_disabled_cgroups(self) -> bool:
        """``CgroupPlugin=disabled`` came with 23.11 (its release notes)."""
        return (self.major, self.minor) >= (23, 11)


def has_cgroup_v1_plugin() -> bool:
    """Whether this Slurm still has it, where Debian puts plugins."""
    return any(Path("/usr/lib").glob("*/slurm*/cgroup_v1.so"))


def parse_version(text: str) -> SlurmVersion:
    """From what ``slurmctld -V`` prints: ``slurm-wlm 22.05.8`` or ``slurm 24.11.5``."""
    match = re.match(r"slurm(?:-wlm)? (\d+)\.(\d+)", text)
    if match is None:
        raise LabError(f"slurmctld -V says {text[:60]!r}: no Slurm version")
    return SlurmVersion(int(match.group(1)), int(match.group(2)))


def installed_version() -> SlurmVersion:
    """Of the slurmctld on PATH."""
    argv = ["slurmctld", "-V"]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=10, check=False)
    return parse_version(done.stdout)


def slurm_conf(spec: LabSpec, *, cgroup_v1: bool, extra: Mapping[str, str]) -> str:
    """slurm.conf(5), the same from 22.05 on.

    ``extra`` adds or replaces settings, the spec's `conf` goes over both; an empty value takes a
    setting out.
    """
    tracking = _CGROUP_V1 if cgroup_v1 else _NO_CGROUP
    accounting = _ACCOUNTING if spec.accounting else _NO_ACCOUNTING
    address = spec.address(CONTROLLER, MANAGEMENT)
    host = {"ClusterName": spec.name, "SlurmctldHost": f"{CONTROLLER}({address})"}
    settings = {**host, **_BASE, **tracking, **accounting, **extra, **spec.conf}
    lines = [f"{key}={value}" for key, value in settings.items() if value != ""]
    return "\n".join([*lines, *_nodes(spec), ""])


def _nodes(spec: LabSpec) -> list[str]:
    return [
        *(
            f"NodeName={node} NodeAddr={spec.address(node, MANAGEMENT)} CPUs=4 RealMemory=4000"
            for node in spec.compute_nodes
        ),
        f"PartitionName=main Nodes=n[1-{spec.main_nodes}] Default=YES MaxTime=INFINITE",
        f"PartitionName=all Nodes=n[1-{spec.nodes}] MaxTime=INFINITE",
    ]


def cgroup_conf(version: SlurmVersion, *, cgroup_v1: bool) -> str:
    """cgroup.conf(5)."""
    if not cgroup_v1 and version.has_disabled_cgroups:
        return "CgroupPlugin=disabled\n"
    # 22.05 always loads a plugin; version 1's is content in a node without any control group as
    # long as nothing uses it, version 2's wants systemd and refuses hybrid hierarchies.
    return "CgroupPlugin=cgroup/v1\nConstrainCores=no\nConstrainRAMSpace=no\n"


# Read only with `--conf JobContainerType=job_container/tmpfs --conf PrologFlags=Alloc,Contain`:
# then every job has a /tmp and a /dev/shm of its own.
JOB_CONTAINER_CONF = "AutoBasePath=true\nBasePath=/var/spool/containers\n"

_BASE = {
    "SlurmUser": "slurm",
    "AuthType": "auth/munge",
    "StateSaveLocation": "/var/spool/slurmctld",
    "SlurmctldPidFile": "/run/slurm/slurmctld.pid",
    "SlurmctldLogFile": "/var/log/slurm/slurmctld.log",
    "SlurmctldDebug": "info",
    "SlurmdSpoolDir": "/var/spool/slurmd",
    "SlurmdPidFile": "/run/slurmd.pid",
    "SlurmdLogFile": "/var/log/slurm/slurmd.log",
    "SlurmdDebug": "info",
    # The host's limits (a small memlock, many files) are not the nodes'.
    "PropagateResourceLimits": "NONE",
    "MpiDefault": "none",
    "SelectType": "select/cons_tres",
    "SelectTypeParameters": "CR_CPU",
    # Four CPUs a node whatever this machine has.
    "SlurmdParameters": "config_overrides",
    "ReturnToService": "2",
    # A dead node is DOWN after 43 s, with the default of 300 only after five minutes.
    "SlurmdTimeout": "30",
    "SlurmctldTimeout": "30",
    "InactiveLimit": "0",
    "KillWait": "5",
    "MinJobAge": "3600",
    "SchedulerParameters": "batch_sched_delay=0,sched_interval=2,bf_interval=2",
}
_CGROUP_V1 = {
    "ProctrackType": "proctrack/cgroup",
    "TaskPlugin": "task/cgroup",
    "JobAcctGatherType": "jobacct_gather/cgroup",
}
_NO_CGROUP = {
    "ProctrackType": "proctrack/linuxproc",
    "TaskPlugin": "task/none",
    "JobAcctGatherType": "jobacct_gather/linux",
}
_NO_ACCOUNTING = {"AccountingStorageType": "accounting_storage/none"}
_ACCOUNTING = {
    "AccountingStorageType": "accounting_storage/slurmdbd",
    "AccountingStorageHost": CONTROLLER,
    "JobAcctGatherFrequency": "5",
}
