"""The checks of ``fabricctl site check``: each looks at one thing and says what to do about it."""

import contextlib
import fcntl
import os
import pwd
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from fabricctl import layout
from fabricctl.cli import site_machine
from fabricctl.cli.site_place import Check, Place
from fabricctl.config import Config
from fabricctl.errors import DataError, FabricError
from fabricctl.slurm import plugin
from fabricctl.slurm.choose import open_slurm

MUNGE_TIMEOUT_S = 5.0
# Of the spool: all agents of a node wait with their samples while it is full. Of the shared
# directory: a trace of 100 nodes and a day has some hundred MB.
ROOM_WANTED_BYTES = {"spool": 100 << 20, "traces": 1 << 30}
STUCK_S = 86_400.0  # a trace that waits in the spool for longer than this will not go by itself
# File systems that no other node sees.
_PRIVATE = frozenset({"tmpfs", "ramfs", "overlay", "squashfs", "iso9660"})


def run_all(config: Config) -> Iterator[Check]:
    """Every check that concerns this host, in the order in which one would mend things."""
    origin = str(config.source) if config.source else "no file: defaults are in force"
    yield Check("config", "ok", origin)
    slurm, settings, is_node = None, dict[str, str](), False
    host = socket.gethostname().partition(".")[0]
    try:
        slurm = open_slurm()
        settings = dict(slurm.configuration())
        is_node = any(node.name == host for node in slurm.nodes())
    except FabricError as error:
        what, _, todo = str(error).rpartition(": ")
        yield Check("slurm", "fail", what or str(error), todo)
    place = Place(config, host, slurm, settings, is_node)
    checks: list[Callable[[Place], Iterator[Check]]] = [slurm_answers, munge, spank_plugin]
    if is_node or slurm is None:
        checks += [scripts, node_service, agent_user, spool]
        checks += [site_machine.kernel, site_machine.ports]
    for check in [*checks, site_machine.mpi, traces]:
        yield from check(place)


def slurm_answers(place: Place) -> Iterator[Check]:
    if place.slurm is None:
        return
    role = "a compute node" if place.is_node else "not a compute node"
    cluster = place.settings.get("ClusterName", "?")
    version = place.slurm.version.text
    yield Check("slurm", "ok", f"{version}, cluster {cluster}; {place.host} is {role}")
    yield Check("adapter", "ok", f"{place.slurm.backend}: {place.slurm.reason}")


def munge(place: Place) -> Iterator[Check]:
    kind = place.settings.get("AuthType", "auth/munge")
    if kind != "auth/munge":
        yield Check("munge", "ok", f"not used: AuthType={kind}")
        return
    try:
        made = _command("munge", "-n")
        opened = subprocess.run(
            ["unmunge", "-o", "/dev/null"],
            input=made, capture_output=True, timeout=MUNGE_TIMEOUT_S, check=False,
        )  # fmt: skip
        if opened.returncode:
            raise DataError(_last_line(opened.stderr))
    except (OSError, subprocess.SubprocessError, DataError) as error:
        yield Check("munge", "fail", str(error), "start munged with the cluster's key")
        return
    yield Check("munge", "ok", "a credential was made and opened")


def spank_plugin(place: Place) -> Iterator[Check]:
    """Is it loaded, is it the file that Slurm accepts, does it look where the service writes."""
    if place.slurm is None:
        return
    conf = place.settings.get("SLURM_CONF", "/etc/slurm/slurm.conf")
    named = place.settings.get("PlugStackConfig", "(null)")
    plugstack = Path(conf).parent / "plugstack.conf" if named == "(null)" else Path(named)
    sample = "site-config/plugstack.conf.d/fabric.conf"
    try:
        line = plugin.find_line(plugstack)
        if line is None:
            yield Check("plugin", "fail", f"{plugstack} does not load it", f"add {sample}")
            return
        file = line.find(place.settings.get("PluginDir", ""))
        series = plugin.built_for(file)
    except DataError as error:
        what, _, why = str(error).rpartition(": ")
        todo = f"make -C spank_plugin install, and {sample}"
        yield Check("plugin", "fail", f"{what}: {why}", todo)
        return
    wanted = place.slurm.version.series
    words = f"{series[0]}.{series[1]:02d}"
    if series != wanted:
        yield Check(
            "plugin", "fail", f"{file} was built for Slurm {words}: jobs run without it",
            f"build it for {wanted[0]}.{wanted[1]:02d}: make -C spank_plugin install",
        )  # fmt: skip
        return
    run_dir = line.arguments.get("run_dir", "/run/fabricctl")
    if run_dir != str(place.config.node.run_dir):
        yield Check(
            "plugin", "fail", f"{line.file}: run_dir={run_dir}, not {place.config.node.run_dir}",
            "make it the same as node.run_dir",
        )  # fmt: skip
        return
    how = "required" if line.required else "optional"
    yield Check("plugin", "ok", f"{file}, built for {words}, {how} in {line.file}")


def scripts(place: Place) -> Iterator[Check]:
    """Prolog and epilog; slurm.conf may name several files, also by a glob."""
    if place.slurm is None:
        return
    for key in ("Prolog", "Epilog"):
        name = f"fabric-{key.lower()}"
        # Before 24.05 the key is Prolog, since then Prolog[0], Prolog[1], ...
        named = [
            value
            for known, value in place.settings.items()
            if known.partition("[")[0] == key and value != "(null)"
        ]
        found = next((path for path in _files(named) if _calls(path, name)), None)
        if found is None:
            said = f"{key}={','.join(named)}" if named else f"no {key} is set"
            todo = "see site-config/slurm.conf.d/fabric.conf"
            yield Check(key.lower(), "fail", f"{said}: {name} is not called", todo)
        elif not os.access(found, os.X_OK):
            yield Check(key.lower(), "fail", f"{found} is not executable", f"chmod 755 {found}")
        else:
            yield Check(key.lower(), "ok", str(found))
    flags = place.settings.get("PrologFlags", "").lower().split(",")
    # Contain and X11 bring Alloc with them (slurm.conf(5), PrologFlags).
    if not {"alloc", "contain", "x11"} & set(flags):
        yield Check(
            "prologflags", "warn", "PrologFlags lacks Alloc: agents begin with the first step only",
            "PrologFlags=Alloc",
        )  # fmt: skip


def node_service(place: Place) -> Iterator[Check]:
    """The service holds a lock as long as it lives."""
    lock = layout.NodeFiles(place.config.node.run_dir).lock
    todo = "systemctl start fabricctl-node; see its log: " + str(place.config.node.log_file)
    try:
        with lock.open("rb") as stream:
            fcntl.flock(stream, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        yield Check("service", "ok", f"it holds {lock}")
    except PermissionError:
        yield Check("service", "warn", f"{lock} cannot be looked at", "run this as root")
    except OSError as error:
        yield Check("service", "fail", f"{lock}: {error.strerror}", todo)
    else:
        yield Check("service", "fail", f"nobody holds {lock}: the node service is dead", todo)


def agent_user(place: Place) -> Iterator[Check]:
    user = place.config.agent.user
    try:
        uid = pwd.getpwnam(user).pw_uid
    except KeyError:
        todo = f"systemd-sysusers, or: useradd -r -s /usr/sbin/nologin {user}"
        yield Check("agent user", "fail", f"{user}: no such user", todo)
        return
    yield Check("agent user", "ok", f"{user} ({uid})")


def spool(place: Place) -> Iterator[Check]:
    """Room for journals, and nothing of old jobs left in it."""
    path = place.config.node.spool_dir
    if not path.is_dir():
        yield Check("spool", "fail", f"{path}: no such directory", "start the node service once")
        return
    owner = path.stat()
    if owner.st_uid != 0 or owner.st_mode & 0o022:
        yield Check("spool", "fail", f"{path} is not root's alone to write", f"chmod 711 {path}")
        return
    stuck = [each.name for each in _children(path) if _age_s(each) > STUCK_S]
    if stuck:
        todo = f"see {place.config.node.log_file} for why they were not collected"
        said = f"{len(stuck)} traces wait in {path} for over a day, e.g. {sorted(stuck)[0]}"
        yield Check("spool", "warn", said, todo)
    yield _room("spool", path)


def traces(place: Place) -> Iterator[Check]:
    """The shared directory: there, safe to write into, and one that others see too."""
    path = place.config.trace.dir
    if not path.is_dir():
        todo = f"mkdir -m 1777 {path} on the shared file system, or set trace.dir"
        yield Check("traces", "fail", f"{path}: no such directory", todo)
        return
    mode = path.stat().st_mode
    if mode & 0o002 and not mode & 0o1000:
        yield Check(
            "traces", "fail", f"{path}: anybody can remove the traces of others in it",
            f"chmod 1777 {path}",
        )  # fmt: skip
        return
    if not mode & 0o002 and not any(each.is_dir() for each in _children(path)):
        yield Check(
            "traces", "warn", f"{path}: users cannot write and have no folders in it",
            f"chmod 1777 {path}, or make a folder for each user",
        )  # fmt: skip
        return
    kind = _file_system(path)
    if kind in _PRIVATE:
        yield Check(
            "traces", "warn", f"{path} is on {kind}: other nodes do not see it",
            "set trace.dir to a directory of the shared file system",
        )  # fmt: skip
        return
    yield _room("traces", path, f" on {kind}" if kind else "")


def _room(name: str, path: Path, more: str = "") -> Check:
    free = shutil.disk_usage(path).free
    said = f"{path}{more}, {free / (1 << 30):.1f} GiB free"
    if free < ROOM_WANTED_BYTES[name]:
        return Check(name, "warn", said, "make room: samples wait while it is full")
    return Check(name, "ok", said)


def _command(*argv: str) -> bytes:
    done = subprocess.run(
        argv, stdin=subprocess.DEVNULL, capture_output=True, timeout=MUNGE_TIMEOUT_S, check=False
    )
    if done.returncode:
        raise DataError(_last_line(done.stderr))
    return done.stdout


def _last_line(output: bytes) -> str:
    return (output.decode(errors="replace").strip().splitlines() or ["it failed"])[-1]


def _files(named: list[str]) -> Iterator[Path]:
    for each in ",".join(named).split(","):
        path = Path(each)
        if path.is_absolute():
            yield from sorted(Path("/").glob(str(path.relative_to("/"))))


def _calls(path: Path, name: str) -> bool:
    """It is the script, or a site's own that names it."""
    if path.name == name:
        return True
    try:
        return name in path.read_text(errors="replace")
    except OSError:
        return False


def _children(path: Path) -> list[Path]:
    try:
        return list(path.iterdir())
    except OSError:
        return []


def _age_s(path: Path) -> float:
    with contextlib.suppress(OSError):
        return time.time() - path.stat().st_mtime
    return 0.0


def _file_system(path: Path) -> str | None:
    """The type of the file system that holds ``path`` (proc(5), mountinfo); the last mount wins."""
    best, kind = "", None
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        left, _, right = line.partition(" - ")
        point = left.split()[4].replace("\\040", " ")
        inside = point == "/" or f"{path.resolve()}/".startswith(f"{point}/")
        if inside and len(point) >= len(best):
            best, kind = point, right.split()[0]
    return kind
