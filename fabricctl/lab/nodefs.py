"""The file system that a lab node sees; runs in the node's own mount namespace.

======================== ==========================================================
``/usr``, ``/opt``       the machine's, read-only
``/etc``                 the lab's copy, one for all nodes
``/var``                 the node's disk, survives the node's death
``/var/spool/fabricctl`` a small file system of its own, so that it can run full
``/run /tmp /dev/shm``   the node's, new at every boot
``/run/fabricctl-lab``   what the lab tells the node: its virtual clock
``/shared``              one for all nodes: the site's parallel file system
``/root /home``          empty but for the checkout, if it lies there
======================== ==========================================================

Nothing else of the machine is visible, and nothing of it can be written.
"""

from pathlib import Path

from fabricctl.lab import kernel
from fabricctl.lab.kernel import MS_NODEV, MS_NOEXEC, MS_NOSUID, MS_PRIVATE, MS_REC, bind, mount

_DEVICES = ("null", "zero", "full", "random", "urandom", "tty", "fuse", "net/tun", "infiniband")
_TOP = ("usr", "opt", "bin", "sbin", "lib", "lib32", "lib64", "libx32")


def enter(
    state: Path, node: str, code: list[Path], cgroups: dict[str, str], writable: list[Path]
) -> None:
    """Builds the node's tree and makes it the root.

    ``code``: directories outside /usr and /opt to show (checkout, virtual environment).
    ``writable``: directories to show that nodes may write to.
    ``cgroups``: mount options of each hierarchy to show, by its name below /sys/fs/cgroup.
    """
    here = state / "nodes" / node
    root = here / "root"
    mount("none", "/", "", MS_REC | MS_PRIVATE)
    mount("tmpfs", root, "tmpfs", 0, "mode=755,size=16m")
    _system(root)
    _volatile(root)
    _devices(root)
    _bound(root, state, here)
    for path in (*code, *writable):
        target = root / path.relative_to("/")
        target.mkdir(parents=True, exist_ok=True)
        bind(path, target, recursive=True)
        if path in code:
            kernel.read_only(target)
    _kernel_trees(root, cgroups)
    kernel.become_root(root)


def _system(root: Path) -> None:
    for name in _TOP:
        source, target = Path("/", name), root / name
        if source.is_symlink():
            target.symlink_to(source.readlink())
        elif source.is_dir():
            target.mkdir()
            bind(source, target, recursive=True)
            kernel.read_only(target)


def _volatile(root: Path) -> None:
    for name, mode in (("run", "755"), ("tmp", "1777"), ("dev", "755")):
        (root / name).mkdir()
        mount(name, root / name, "tmpfs", MS_NOSUID, f"mode={mode}")
    for name in ("root", "home", "srv", "mnt", "media"):
        (root / name).mkdir()
    lock = root / "run" / "lock"
    lock.mkdir()
    lock.chmod(0o1777)


def _devices(root: Path) -> None:
    dev = root / "dev"
    for name in (*_DEVICES, *(path.name for path in Path("/dev").glob("nvidia*"))):
        source, target = Path("/dev", name), dev / name
        if not source.exists():
            continue
        target.parent.mkdir(exist_ok=True)
        if source.is_dir():
            target.mkdir()
        else:
            target.touch()
        bind(source, target)
    for name, to in (("fd", "self/fd"), ("stdin", "self/fd/0"), ("stdout", "self/fd/1")):
        (dev / name).symlink_to(f"/proc/{to}")
    (dev / "stderr").symlink_to("/proc/self/fd/2")
    (dev / "ptmx").symlink_to("pts/ptmx")
    for name in ("pts", "shm"):
        (dev / name).mkdir()
    mount("devpts", dev / "pts", "devpts", MS_NOSUID, "newinstance,ptmxmode=0666,mode=620,gid=5")
    mount("shm", dev / "shm", "tmpfs", MS_NOSUID | MS_NODEV, "mode=1777")


def _bound(root: Path, state: Path, here: Path) -> None:
    for source, target in (
        (state / "etc", "etc"),
        (here / "disk", "var"),
        (state / "shared", "shared"),
    ):
        (root / target).mkdir()
        bind(source, root / target)
    bind(here / "spool", root / "var/spool/fabricctl")
    (root / "run/fabricctl-lab").mkdir()
    bind(here / "lab", root / "run/fabricctl-lab")


def _kernel_trees(root: Path, cgroups: dict[str, str]) -> None:
    quiet = MS_NOSUID | MS_NODEV | MS_NOEXEC
    for name in ("proc", "sys"):
        (root / name).mkdir()
    mount("proc", root / "proc", "proc", quiet)
    mount("sysfs", root / "sys", "sysfs", quiet)
    top = root / "sys/fs/cgroup"
    if list(cgroups) == [""]:
        mount("cgroup2", top, "cgroup2", quiet)
        return
    if not cgroups:
        return
    mount("cgroup", top, "tmpfs", quiet, "mode=755")
    for name, options in cgroups.items():
        (top / name).mkdir(parents=True)
        mount("cgroup", top / name, "cgroup", quiet, options)
    # Names of single controllers where several share a tree, as systemd and Slurm expect them.
    for name, options in cgroups.items():
        for controller in options.split(","):
            if controller != name and not (top / controller).exists():
                (top / controller).symlink_to(name)
