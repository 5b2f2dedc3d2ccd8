"""Chroots of Debian suites, each with that suite's own Slurm, made once and kept.

``python tests/support/chroot.py forky`` makes one by hand; ``... forky CMD...`` runs a command in
it. Needs root, debootstrap and an apt that can reach a Debian mirror; the mirror is the one that
this machine's apt uses. A chroot is made in, and used from, mount and PID namespaces of its own, so
that nothing outside ever sees a mount below it and a kill leaves nothing behind.
"""

import contextlib
import fcntl
import hashlib
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).parent
PROJECT = HERE.parents[1]
CACHE = Path(os.environ.get("FABRICCTL_CHROOTS", "/var/cache/fabricctl/chroots"))
KEYRING = "/usr/share/keyrings/debian-archive-keyring.gpg"
MAKE_TIMEOUT_S = 1500  # 40 to 280 s here; a slow mirror may take five times that

PYSLURM = "pyslurm==25.11.2"


@dataclass(frozen=True)
class Suite:
    """A Debian suite and the Slurm that it has."""

    name: str
    slurm: str  # major.minor
    pyslurm: bool = False


SUITES = {
    suite.name: suite
    for suite in (
        Suite("bookworm", "22.05"),
        Suite("trixie", "24.11"),
        Suite("forky", "26.05", pyslurm=True),
    )
}


class ChrootError(Exception):
    """A chroot cannot be made or used: says why and what to do."""


def make(suite: Suite) -> Path:
    """The suite's chroot, made now when it is not in the cache."""
    if os.geteuid() != 0:
        raise ChrootError(f"chroot {suite.name}: must be made as root")
    if shutil.which("debootstrap") is None:
        raise ChrootError(f"chroot {suite.name}: debootstrap is missing: apt install debootstrap")
    CACHE.mkdir(parents=True, exist_ok=True)
    done = CACHE / f"{suite.name}-{_recipe(suite)}"
    if not done.exists():
        with _locked(suite, fcntl.LOCK_EX):  # waits for those who still run in an older one
            if not done.exists():
                for old in CACHE.glob(f"{suite.name}-*"):
                    _remove(old)
                _make(suite, done)
    return done


def run(
    suite: Suite, argv: Sequence[str], *, timeout_s: float, out: Path | None = None
) -> subprocess.CompletedProcess[str]:
    """Runs a command in a throw-away copy of the chroot, with no network but a loopback.

    The project lies read-only in ``/project``; what the command writes to ``/out`` is kept in
    ``out``. Everything that it started is gone when this returns, whatever happened.
    """
    root = make(suite)
    with (
        _locked(suite, fcntl.LOCK_SH),
        tempfile.TemporaryDirectory(prefix="fabricctl-chroot-") as scratch,
    ):
        command = [
            *("unshare", "--mount", "--net", "--uts", "--ipc", "--pid", "--fork", "--kill-child"),
            *("--propagation", "private", "--", str(HERE / "chroot-enter")),
            *(str(root), scratch, str(PROJECT), str(out or ""), *argv),
        ]
        return _finish(command, timeout_s, nice=0)


def mirror() -> str:
    """The Debian mirror that this machine's apt uses."""
    listing = subprocess.run(
        ["apt-get", "indextargets", "--format", "$(ORIGIN) $(COMPONENT) $(CODENAME) $(REPO_URI)",
         "Created-By: Packages"],
        capture_output=True, text=True, timeout=60, check=True,
    ).stdout  # fmt: skip
    own = platform.freedesktop_os_release().get("VERSION_CODENAME", "")
    for line in listing.splitlines():
        origin, component, codename, uri = line.split()
        if (origin, component, codename) == ("Debian", "main", own):
            return uri
    raise ChrootError(
        "chroot: apt on this machine knows no Debian mirror: see apt-get indextargets"
    )


def _recipe(suite: Suite) -> str:
    """Changes when the way of making it does, so that an old chroot is made again."""
    text = (HERE / "chroot-make").read_bytes() + f"{suite} {PYSLURM}".encode()
    return hashlib.sha256(text).hexdigest()[:12]


def _make(suite: Suite, done: Path) -> None:
    building = CACHE / f"{suite.name}-building"
    _remove(building)
    building.mkdir()
    with tempfile.TemporaryDirectory(prefix="fabricctl-sdist-") as sdist:
        if suite.pyslurm:
            # From PyPI by the ordinary client of this machine, whatever index that is set to.
            download = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
            _checked([*download, "--no-binary", "pyslurm", "--dest", sdist, PYSLURM], suite)
        _checked(
            [
                *("unshare", "--mount", "--uts", "--ipc", "--pid", "--fork", "--kill-child"),
                *("--propagation", "private", "--", str(HERE / "chroot-make")),
                *(suite.name, str(building), mirror(), KEYRING, sdist if suite.pyslurm else ""),
            ],
            suite,
        )
    building.rename(done)


def _checked(command: Sequence[str], suite: Suite) -> None:
    done = _finish(command, MAKE_TIMEOUT_S, nice=10)
    if done.returncode:
        raise ChrootError(
            f"chroot {suite.name}: {Path(command[0]).name} ended with {done.returncode}: "
            f"{(done.stdout + done.stderr)[-3000:]}"
        )


def _finish(
    command: Sequence[str], timeout_s: float, nice: int
) -> subprocess.CompletedProcess[str]:
    """Like subprocess.run, but a time-out, or our own death, ends unshare and with it (by its
    --kill-child) all that is in its PID namespace."""
    with subprocess.Popen(
        ["setpriv", "--pdeathsig", "KILL", "nice", "-n", str(nice), *command],
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    ) as process:  # fmt: skip
        try:
            stdout, stderr = process.communicate(timeout=timeout_s)
        except BaseException:
            process.kill()
            raise
    return subprocess.CompletedProcess(command, process.returncode, stdout, stderr)


def _remove(path: Path) -> None:
    """Deletes a chroot; refuses while anything is mounted below it."""
    if not path.exists():
        return
    mounted = [
        line.split()[4]
        for line in Path("/proc/self/mountinfo").read_text().splitlines()
        if f"{line.split()[4]}/".startswith(f"{path}/")
    ]
    if mounted:
        raise ChrootError(f"chroot {path}: {', '.join(mounted)} is mounted: umount it first")
    subprocess.run(["rm", "-rf", "--one-file-system", str(path)], timeout=300, check=True)


@contextlib.contextmanager
def _locked(suite: Suite, how: int) -> Iterator[None]:
    with (CACHE / f"{suite.name}.lock").open("w") as lock:
        fcntl.flock(lock, how)
        yield


if __name__ == "__main__":
    try:
        if len(sys.argv) > 2:
            result = run(SUITES[sys.argv[1]], sys.argv[2:], timeout_s=3600)
            sys.stdout.write(result.stdout)
            sys.stderr.write(result.stderr)
            sys.exit(result.returncode)
        print(make(SUITES[sys.argv[1]]))
    except (ChrootError, KeyError, IndexError) as error:
        sys.exit(f"{error}\nusage: chroot.py {'|'.join(SUITES)} [COMMAND...]")
