"""``fabricctl node serve``: the one service of a compute node.

Root, single-threaded, and never waiting for anything but its own descriptors: not for the
network, not for the shared directory, not for Slurm. Prolog and epilog leave request files; for
every allocation an agent is forked, watched and ended, and its spool is handed to the sealer.
"""

import errno
import fcntl
import gc
import os
import select
import signal
import sys
import time
import traceback
from pathlib import Path

from fabricctl import config as configuration
from fabricctl import layout
from fabricctl.agent.log import NodeLog
from fabricctl.agent.record import boot_id
from fabricctl.config import Config
from fabricctl.errors import FabricError, SystemRefusedError
from fabricctl.node import requests, rootfiles, spawn
from fabricctl.node import spool as spools
from fabricctl.node.allocation import Allocation, Keeper, read_live
from fabricctl.node.inotify import Inotify
from fabricctl.node.keepers import Keepers
from fabricctl.node.orphans import OrphanWatch
from fabricctl.node.places import TrackPlaces
from fabricctl.node.requests import Request
from fabricctl.node.sealing import SealQueue
from fabricctl.node.steerers import Steerers
from fabricctl.paths.keeper import PathsKeeper
from fabricctl.store.schema import Severity

# Slurm waits for what slurmd does after prolog and epilog: what we do then would be in its way.
AFTER_SLURMD_S = 0.05
RESCAN_S = 5.0  # requests are looked for even when inotify told nothing
ERROR_PAUSE_S = 0.5  # an error that repeats must not use up a core
LOCK_WAIT_S = 5.0  # steps and agents try the lock for an instant to see whether it is held


class Service:
    """All allocations of this node."""

    def __init__(self, config: Config, log: NodeLog) -> None:
        self._config = config
        self._log = log
        self._files = layout.NodeFiles(config.node.run_dir)
        self._identity = spawn.agent_identity(config.agent.user)
        self._keeper = Keeper(config, self._identity, log)
        self._places = TrackPlaces(config, self._identity.gid, log)
        self._keepers = Keepers(config, log)
        self._allocations: dict[int, Allocation] = {}
        self._seals = SealQueue(config, log)
        self._paths = PathsKeeper(config, log)
        self._steerers = Steerers(config, self._identity, log)
        self._orphans = OrphanWatch(config.node.orphan_check_s, log)
        self._inotify: Inotify | None = None
        self._next_scan_s = 0.0
        self._wake_fd, wake_in = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        signal.set_wakeup_fd(wake_in, warn_on_full_buffer=False)
        self._stopped = False

    # Life of the service

    def run(self) -> None:
        """Until SIGTERM; agents live on."""
        self._make_dirs()
        lock_fd = take_lock(self._files.lock, self._identity.gid)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._stop)
        self._watch_requests()
        self._adopt()
        self._places.begin(set(self._allocations))
        for item in self._allocations.values():
            self._keepers.adopt(item.start, time.monotonic())
        self._paths.begin([item.start for item in self._allocations.values()], time.monotonic())
        self._steerers.begin([item.start for item in self._allocations.values()], time.monotonic())
        self._log.write("node", f"serving, {len(self._allocations)} allocations taken over")
        gc.collect()
        gc.freeze()  # agents share these pages as long as nobody writes to them
        try:
            while not self._stopped:
                self._turn_or_log()
        finally:
            self._seals.close()
            self._log.write("node", f"stopped; {len(self._allocations)} agents live on")
            os.close(lock_fd)

    def _stop(self, _number: int, _frame: object) -> None:
        self._stopped = True

    def _make_dirs(self) -> None:
        node = self._config.node
        for path in (node.run_dir, node.spool_dir):
            path.parent.mkdir(parents=True, exist_ok=True)
            rootfiles.make_dir(path, 0o711)
        for path in (self._files.requests, self._files.jobs):
            rootfiles.make_dir(path, 0o711)
        rootfiles.make_dir(self._files.steps_dir, 0o755)
        rootfiles.make_dir(self._files.live_dir, 0o700)

    def _watch_requests(self) -> None:
        if self._inotify is not None:
            self._inotify.close()
            self._inotify = None
        try:
            self._inotify = Inotify(self._files.requests)
        except OSError as error:
            text = f"{error.strerror}: requests are seen within {RESCAN_S:g} s only"
            self._log.write("node", text, Severity.ERROR)

    def _turn_or_log(self) -> None:
        """One fault of ours must not take the node's other jobs their protection."""
        try:
            self._turn()
        except Exception:
            lines = traceback.format_exc().strip().splitlines()
            self._log.write("node", "an error: " + " | ".join(lines[-8:]), Severity.ERROR)
            time.sleep(ERROR_PAUSE_S)

    def _turn(self) -> None:
        """Waits for something to happen and does what follows."""
        ready = self._wait()
        now_s = time.monotonic()
        if self._inotify is not None and self._inotify.fileno() in ready:
            self._inotify.drain()
            self._next_scan_s = now_s
        for allocation in list(self._allocations.values()):
            if allocation.pidfd in ready:
                self._keeper.died(allocation, now_s)
        if self._seals.fileno() in ready:
            self._seals.receive(now_s)
        if self._orphans.fileno() in ready:
            self._take_answer(now_s)
        if now_s >= self._next_scan_s:
            self._next_scan_s = now_s + RESCAN_S
            self._serve_requests(now_s)
        self._run_due(now_s)

    def _wait(self) -> set[int]:
        poll = select.poll()
        sources = [self._wake_fd, self._seals.fileno(), self._orphans.fileno()]
        sources += [self._inotify.fileno()] if self._inotify else []
        sources += [allocation.pidfd for allocation in self._allocations.values()]
        for fd in sources:
            if fd >= 0:
                poll.register(fd, select.POLLIN)
        wait_s = max(0.0, self._next_due_s() - time.monotonic())
        ready = {fd for fd, _ in poll.poll(wait_s * 1000 + 1)}
        if self._wake_fd in ready:
            os.read(self._wake_fd, 512)
        return ready

    def _next_due_s(self) -> float:
        dues = [self._next_scan_s]
        for allocation in self._allocations.values():
            dues += [due for due in (allocation.restart_s, allocation.kill_s) if due is not None]
        sealing = self._seals.next_due_s()
        paths = self._paths.next_due_s()
        keepers = self._keepers.next_due_s()
        steering = self._steerers.next_due_s(time.monotonic())
        dues += [due for due in (sealing, paths, keepers, steering) if due is not None]
        dues += [self._orphans.next_due_s()] if self._allocations else []
        return min(dues)

    def _run_due(self, now_s: float) -> None:
        for allocation in list(self._allocations.values()):
            if allocation.kill_s is not None and allocation.kill_s <= now_s:
                allocation.kill_s = None
                text = "agent did not end in time and was killed"
                self._log.write(f"node job={allocation.job}", text, Severity.ERROR)
                self._keeper.send(allocation, signal.SIGKILL)
            if allocation.restart_s is not None and allocation.restart_s <= now_s:
                self._keeper.launch(allocation, now_s)
            if allocation.ending:
                self._paths.stop(allocation.job, now_s)
                self._steerers.stop(allocation.job, now_s)
            if allocation.over:
                self._close(allocation, now_s)
        if self._allocations:
            running = {
                job: (allocation.start.node, len(allocation.start.nodes))
                for job, allocation in self._allocations.items()
                if not allocation.ending
            }
            self._orphans.run_due(running, now_s)
        self._paths.turn(now_s)
        self._steerers.turn(now_s)
        for job in self._keepers.turn(now_s):
            if job not in self._allocations:
                self._places.forget(job)
        self._seals.run_due(now_s)

    # Requests

    def _serve_requests(self, now_s: float) -> None:
        try:
            waiting = requests.waiting(self._files.requests, self._refuse)
        except OSError as error:
            text = f"{self._files.requests}: {error.strerror}"
            self._log.write("node", text, Severity.ERROR)
            self._make_dirs()
            self._watch_requests()
            return
        for request in waiting:
            young_s = AFTER_SLURMD_S - (time.time_ns() - request.written_real_ns) / 1e9
            if 0 < young_s <= AFTER_SLURMD_S:
                self._next_scan_s = now_s + young_s
                return  # those after it are younger
            if request.what == "start":
                self._serve_start(request, now_s)
            else:
                self._serve_stop(request, now_s)

    def _serve_start(self, request: Request, now_s: float) -> None:
        try:
            read = requests.read_start(request)
        except (OSError, FabricError) as error:
            self._refuse(request.path, str(error))
            return
        if read is None:
            return  # the next look finds it whole
        start, text = read
        known = self._allocations.get(start.job)
        if known is None:
            allocation = self._keeper.new(start, text, request.written_real_ns)
            self._allocations[start.job] = allocation
            if self._keepers.is_anothers(start):
                self._places.forget(start.job)
            self._places.start(start)
            self._keepers.start(start, now_s)
            self._keeper.launch(allocation, now_s)
            self._paths.start(allocation.start, now_s)
            self._steerers.start(allocation.start, now_s)
            self._remove(request.path)
        elif known.ending:
            return  # a requeue: served when the attempt before it is over
        elif known.text == text:
            self._remove(request.path)  # said twice
        else:
            self._keeper.stop(known, signal.SIGUSR1, now_s)

    def _serve_stop(self, request: Request, now_s: float) -> None:
        known = self._allocations.get(request.job)
        if known is not None:
            # The request stays until the agent has ended: should this service die first, the
            # agent finds it, and so does the next service.
            self._keeper.stop(known, signal.SIGTERM, now_s)
            return
        try:
            self._keeper.remove(request.job)
        except OSError as error:
            self._log.write(f"node job={request.job}", f"not removed: {error}", Severity.ERROR)
        self._remove(request.path)

    def _refuse(self, path: Path, why: str) -> None:
        text = f"request {path.name[:80]!r} refused and removed: {why}"
        self._log.write("node", text, Severity.ERROR)
        self._remove(path)

    def _remove(self, path: Path) -> None:
        try:
            requests.remove(path)
        except OSError as error:
            self._log.write("node", f"{path}: {error.strerror}", Severity.ERROR)

    # Ends

    def _take_answer(self, now_s: float) -> None:
        answer = self._orphans.receive()
        if answer is None or answer[0] not in self._allocations:
            return
        job, why = answer
        self._log.write(f"node job={job}", f"ended without an epilog: {why}", Severity.WARNING)
        self._keeper.stop(self._allocations[job], signal.SIGUSR1, now_s)

    def _close(self, allocation: Allocation, now_s: float) -> None:
        """The agent has ended: clears run_dir and hands the spool over."""
        try:
            self._keeper.remove_ended(allocation)
        except OSError as error:
            self._log.write(f"node job={allocation.job}", f"not removed: {error}", Severity.ERROR)
        self._paths.forget(allocation.job, now_s)
        self._steerers.forget(allocation.job, now_s)
        self._keepers.stop(allocation.job)
        if not self._keepers.held(allocation.job):
            self._places.forget(allocation.job)
        del self._allocations[allocation.job]
        self._keeper.leave_notes(allocation)
        self._remove(self._files.request(allocation.job, "stop"))
        nodes = len(allocation.start.nodes)
        self._seals.add(allocation.spool, nodes, allocation.text, now_s)
        self._next_scan_s = now_s  # a requeue may wait

    # After a start of the service or of the node

    def _adopt(self) -> None:
        """Takes over what an earlier service left."""
        now_s = time.monotonic()
        if not self._same_boot():
            self._log.write("node", "the node was started again: its allocations are over")
            self._clear_jobs()
        for path in sorted(self._files.live_dir.iterdir()):
            if layout.parse_spool(path) is not None:
                if not (self._config.node.spool_dir / path.name).is_dir():
                    path.unlink()
                continue
            allocation = None
            if path.name.isdecimal():
                allocation = self._keeper.adopt(int(path.name), now_s)
            if allocation is None:
                path.unlink()
            else:
                self._allocations[allocation.job] = allocation
        for path in sorted(self._files.jobs.iterdir()):
            if not path.name.isdecimal() or int(path.name) not in self._allocations:
                self._log.write("node", f"{path}: left over, removed")
                rootfiles.remove_tree(path)
        self._clear_marks()
        live = {allocation.spool for allocation in self._allocations.values()}
        for path in sorted(self._config.node.spool_dir.iterdir()):
            if layout.parse_spool(path) is not None and path not in live:
                self._adopt_spool(path, now_s)

    def _adopt_spool(self, path: Path, now_s: float) -> None:
        """The spool of an allocation that has ended."""
        text = ""
        if not spools.has_start(path):
            try:
                text, _ = read_live(self._files.unsaved(path))
            except (OSError, ValueError):
                why = "nobody knows whose it is: the node went down while its spool was full"
                self._log.write("node", f"{path}: removed: {why}", Severity.ERROR)
                rootfiles.remove_tree(path)
                return
        self._seals.add(path, 1, text, now_s)

    def _same_boot(self) -> bool:
        """Whether run_dir is of this boot of the node; from now on it is."""
        mark = self._files.run_dir / "boot_id"
        try:
            before = rootfiles.read_small(mark, 0).decode(errors="replace")
        except OSError:
            before = ""
        now = boot_id()
        if before != now:
            mark.unlink(missing_ok=True)
            rootfiles.write_new(mark, now.encode(), 0o644, 0, 0)
        return before in ("", now)

    def _clear_jobs(self) -> None:
        """What was made before the node was started; requests of this boot stay."""
        booted_s = time.time() - time.clock_gettime(time.CLOCK_BOOTTIME)
        files = self._files
        for directory in (files.live_dir, files.jobs, files.steps_dir, files.requests):
            for path in directory.iterdir():
                if path.lstat().st_mtime < booted_s:
                    rootfiles.remove_tree(path)

    def _clear_marks(self) -> None:
        """Marks of steps whose job is neither here nor announced."""
        for path in self._files.steps_dir.iterdir():
            announced = path.name.isdecimal() and (
                self._files.request(int(path.name), "start").exists()
                or self._files.job_dir(int(path.name)).exists()
            )
            if not announced:
                rootfiles.remove_tree(path)


def take_lock(path: Path, reader_gid: int) -> int:
    """The lock that says that a node service lives; raises :class:`SystemRefusedError`.

    Who can open the file can lock it, and would keep the next service from starting: root and
    ``reader_gid``, the group of the agents, which look whether somebody holds it.
    """
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o640)
    os.fchown(fd, 0, reader_gid)
    os.fchmod(fd, 0o640)
    deadline_s = time.monotonic() + LOCK_WAIT_S
    while True:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return fd
        except OSError as error:
            if error.errno != errno.EWOULDBLOCK or time.monotonic() > deadline_s:
                os.close(fd)
                raise SystemRefusedError(f"{path}: another node service runs already") from None
        time.sleep(0.05)


def main() -> None:
    """Entry point of ``python -m fabricctl.node.service``; exits with a status of sysexits.h."""
    try:
        config = configuration.load()
        if os.geteuid() != 0:
            raise SystemRefusedError("the node service must be started as root")
        os.umask(0o022)
        spawn.leave_no_core()
        log = NodeLog(config.node.log_file)
        try:
            Service(config, log).run()
        except (FabricError, OSError) as error:
            log.write("node", f"not serving: {error}", Severity.ERROR)
            raise
    except FabricError as error:
        sys.stderr.write(f"fabricctl node service: {error}\n")
        sys.exit(error.exit_status)


if __name__ == "__main__":
    main()
