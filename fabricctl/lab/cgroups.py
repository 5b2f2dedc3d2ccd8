"""Control groups of a lab: one group a node, in every hierarchy that this machine lets us use.

They hold a node together: Slurm's own groups lie below them, freezing a node is freezing its
group, and whatever is left in them when the lab goes is ended.
"""

import contextlib
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from fabricctl.errors import LabError

_ROOT = Path("/sys/fs/cgroup")
# What Slurm's cgroup plugins need of version 1 (slurm.conf(5), cgroup.conf(5)).
_SLURM_NEEDS = frozenset({"freezer", "memory", "cpuset", "cpuacct", "devices"})


@dataclass(frozen=True)
class Hierarchy:
    """A mounted cgroup tree. ``controllers`` is empty for version 2."""

    mount: Path
    controllers: tuple[str, ...]

    @property
    def v2(self) -> bool:
        return not self.controllers

    def group(self, lab: str) -> Path:
        return self.mount / f"fabricctl-lab-{lab}"


def hierarchies() -> list[Hierarchy]:
    """The trees below /sys/fs/cgroup in which groups can be made: version 1's where there are any
    (the version 2 tree beside them has no controllers of use), else version 2's."""
    found: list[Hierarchy] = []
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        before, _, after = line.partition(" - ")
        mount, flags = Path(before.split()[4]), before.split()[5].split(",")
        kind, _, options = after.split()[:3]
        usable = mount.is_relative_to(_ROOT) and os.access(mount, os.W_OK)
        if not usable or "ro" in flags:
            continue
        if kind == "cgroup2":
            found.append(Hierarchy(mount, ()))
        elif kind == "cgroup":
            names = [o for o in options.split(",") if o not in ("rw", "xattr", "clone_children")]
            # A hierarchy without controllers (name=systemd) is of no use in a node. One of `cpu`
            # alone does harm: Slurm needs none, and a group there has no real-time share of its
            # own (below) and a nice value that counts for nothing outside of it.
            if names != ["cpu"] and not any(name.startswith("name=") for name in names):
                found.append(Hierarchy(mount, tuple(names)))
    return [tree for tree in found if not tree.v2] or found


def has_slurm_v1(trees: list[Hierarchy]) -> bool:
    """Whether Slurm's cgroup/v1 plugin finds all it wants."""
    return {name for tree in trees for name in tree.controllers} >= _SLURM_NEEDS


# Of 950 ms a second and core, the kernel's default: two labs of nine nodes fit.
_LAB_REALTIME_US, _NODE_REALTIME_US = 450_000, 50_000


def _make(lab: str, node: str) -> list[Path]:
    """The node's groups, made where missing; one that a killed tool left half made is completed."""
    made: list[Path] = []
    for tree in hierarchies():
        top = tree.group(lab)
        for group in (top, top / node):
            group.mkdir(exist_ok=True)
            _prepare(tree, group)
        made.append(top / node)
    return made


def renew(lab: str, node: str) -> list[Path]:
    """The groups of a node that is about to boot, without what the last boot left in them."""
    for top in groups(lab):
        _remove_tree(top / node)
    return _make(lab, node)


def entry(group: Path) -> Path:
    """The file that a process of the node enters ``group`` by."""
    leaf = group / "init.scope"  # made by the node's init in a version 2 tree
    return (leaf if leaf.is_dir() else group) / "cgroup.procs"


def _prepare(tree: Hierarchy, group: Path) -> None:
    if "cpuset" in tree.controllers:
        # An empty cpuset takes no process (cpusets(7)).
        for name in ("cpuset.cpus", "cpuset.mems"):
            (group / name).write_text((tree.mount / name).read_text())
        (group / "cgroup.clone_children").write_text("1")
    _allow_realtime(tree, group)
    if tree.v2:
        for name in (group.parent / "cgroup.controllers").read_text().split():
            try:
                (group.parent / "cgroup.subtree_control").write_text(f"+{name}")
            except OSError:
                continue  # not ours to hand down; Slurm then goes without that controller


def _allow_realtime(tree: Hierarchy, group: Path) -> None:
    """A share of each core for real-time tasks, without which a kernel with RT_GROUP_SCHED refuses
    them (sched-rt-group): real nodes have it all. Where too many labs or nodes want one, the last
    go without, and our daemons there fall back to a nice value."""
    share_us = _LAB_REALTIME_US if group.parent == tree.mount else _NODE_REALTIME_US
    with contextlib.suppress(OSError):
        file = group / "cpu.rt_runtime_us"
        if file.exists():
            file.write_text(str(share_us))


def groups(lab: str) -> list[Path]:
    """The lab's top group in every tree that has one, version 1's first."""
    parents = [path for path in sorted(_ROOT.glob("*")) if path.is_dir()]
    tops = [parent / f"fabricctl-lab-{lab}" for parent in (*parents, _ROOT)]
    return [top for top in tops if top.is_dir()]


def freeze(lab: str, node: str, frozen: bool) -> bool:
    """Stops or continues every process of a node; False where no control group can."""
    for top in groups(lab):
        v1, v2 = top / node / "freezer.state", top / node / "cgroup.freeze"
        if v1.exists():
            v1.write_text("FROZEN" if frozen else "THAWED")
            _wait_for(v1, "FROZEN" if frozen else "THAWED")
            return True
        if v2.exists():
            v2.write_text("1" if frozen else "0")
            return True
    return False


def thaw_all(lab: str, node: str = "") -> None:
    """A node's groups, or the whole lab's, and what Slurm suspended in them: nothing that is frozen
    dies (freezer of version 1), SIGKILL or not."""
    for top in groups(lab):
        for path, _, files in os.walk(top / node):
            for name, thawed in (("freezer.state", "THAWED"), ("cgroup.freeze", "0")):
                with contextlib.suppress(OSError):  # the group went meanwhile
                    if name in files and (state := Path(path, name)).read_text().strip() != thawed:
                        state.write_text(thawed)


def is_frozen(lab: str, node: str) -> bool:
    for top in groups(lab):
        v1, v2 = top / node / "freezer.state", top / node / "cgroup.freeze"
        if v1.exists():
            return v1.read_text().strip() != "THAWED"
        if v2.exists() and v2.read_text().strip() == "1":
            return True
    return False


def _wait_for(state: Path, wanted: str) -> None:
    # A version 1 freezer may stay FREEZING while a process is in the kernel; writing again retries.
    for _ in range(200):
        if state.read_text().strip() == wanted:
            return
        time.sleep(0.005)
        state.write_text(wanted)
    raise LabError(f"{state}: still {state.read_text().strip()} after a second")


def processes(lab: str) -> Iterator[int]:
    """Whatever is in the lab's groups."""
    for top in groups(lab):
        for path, _, _ in os.walk(top):
            try:
                yield from map(int, Path(path, "cgroup.procs").read_text().split())
            except OSError:
                continue  # the group went meanwhile, or is threaded


def remove(lab: str) -> None:
    """Takes the lab's groups away; raises :class:`LabError` when processes keep one alive."""
    for top in groups(lab):
        for _ in range(200):
            _remove_tree(top)
            if not top.exists():
                break
            time.sleep(0.01)
        else:
            raise LabError(f"{top}: cannot be removed, something is still in it")


def _remove_tree(top: Path) -> None:
    for path, _, _ in os.walk(top, topdown=False):
        try:
            Path(path).rmdir()
        except OSError:
            continue
