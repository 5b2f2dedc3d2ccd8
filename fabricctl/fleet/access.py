"""Who may see and do what: from Slurm's accounting rights and Unix groups. Pure but for groups.

::

    user         sees nodes and the jobs that are theirs
    coordinator  also the jobs of the accounts they coordinate
    operator     sees everything; may drain and return nodes, as in Slurm
    admin        everything
"""

import grp
import pwd
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

from fabricctl.errors import SystemRefusedError
from fabricctl.sections import AccessConfig
from fabricctl.slurm.model import Rights

Role = Literal["user", "operator", "admin"]
ROLES: tuple[Role, ...] = ("user", "operator", "admin")


@dataclass(frozen=True)
class Who:
    """One caller. ``accounts``: those that they coordinate."""

    user: str
    role: Role
    accounts: frozenset[str] = frozenset()

    def sees_job(self, user: str | None, account: str | None, access: AccessConfig) -> bool:
        if self.role != "user" or access.jobs_of_others:
            return True
        return user == self.user or (account is not None and account in self.accounts)

    def may_change_nodes(self) -> bool:
        return self.role != "user"

    def may_change_job(self, user: str | None, account: str | None) -> bool:
        if self.role != "user":
            return True
        return user == self.user or (account is not None and account in self.accounts)


def who(
    uid: int,
    rights: Mapping[str, Rights],
    access: AccessConfig,
    slurm_user: str = "slurm",
    groups: Iterable[str] | None = None,
) -> Who:
    """``rights``: of Slurm's accounting, by user. ``groups`` None: as this host has them."""
    try:
        user = pwd.getpwuid(uid).pw_name
    except KeyError:
        return Who(str(uid), "user")  # nobody here knows them: the least there is
    if uid == 0 or user == slurm_user:
        return Who(user, "admin")
    mine = set(groups_of(user) if groups is None else groups)
    known = rights.get(user, Rights("user"))
    role: Role = known.level
    if mine & set(access.admins):
        role = "admin"
    elif mine & set(access.operators) and role == "user":
        role = "operator"
    return Who(user, role, frozenset(known.coordinates))


def groups_of(user: str) -> set[str]:
    """Names of all of a user's Unix groups."""
    found = set()
    try:
        for gid in _group_ids(user):
            try:
                found.add(grp.getgrgid(gid).gr_name)
            except KeyError:
                continue
    except (KeyError, OSError):
        return set()
    return found


def _group_ids(user: str) -> list[int]:
    import os

    return os.getgrouplist(user, pwd.getpwnam(user).pw_gid)


def demand_operator(caller: Who, what: str) -> None:
    """Raises :class:`SystemRefusedError` for who may not change nodes."""
    if not caller.may_change_nodes():
        raise SystemRefusedError(
            f"{what}: {caller.user} is not an operator: Slurm's AdminLevel, or a group of "
            "access.operators in fabricctl.toml"
        )
