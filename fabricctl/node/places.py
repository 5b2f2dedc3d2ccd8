"""What the node service makes for jobs whose ranks are tracked (fabricctl/state/places.py)."""

from fabricctl import layout
from fabricctl.agent.log import NodeLog
from fabricctl.config import Config
from fabricctl.node import rootfiles
from fabricctl.records import JobStart
from fabricctl.state import places
from fabricctl.store.schema import Severity


class TrackPlaces:
    """Directories of the jobs; what fails is said in the log and hurts no job."""

    def __init__(self, config: Config, agents_gid: int, log: NodeLog) -> None:
        self._config = config
        self._gid = agents_gid
        self._log = log
        self._files = layout.NodeFiles(config.node.run_dir)
        self._ready = False

    def begin(self, live: set[int]) -> None:
        """When the service starts: the tmpfs, and away with what is left of jobs that are gone."""
        if not self._config.state.enabled:
            return
        try:
            places.prepare(self._files, self._config.state.track_mib)
            self._ready = True
        except OSError as error:
            text = f"ranks are not tracked: {error.filename}: {error.strerror}"
            self._log.write("node", text, Severity.WARNING)
        for job in places.jobs(self._files):
            if job not in live:
                self.forget(job)

    def start(self, start: JobStart) -> None:
        """A job begins here; may be said twice."""
        if not self._ready:
            return
        try:
            path = self._files.track_dir(start.job)
            # The agents' group may look; the files in it are for everybody who comes that far.
            rootfiles.make_dir(path, 0o750, start.uid, self._gid)
        except OSError as error:
            text = f"ranks are not tracked: {error.strerror}"
            self._log.write(f"node job={start.job}", text, Severity.WARNING)

    def forget(self, job: int) -> None:
        """The agent has read the last of it."""
        try:
            rootfiles.remove_tree(self._files.track_dir(job))
        except OSError as error:
            text = f"not removed: {error.strerror}"
            self._log.write(f"node job={job}", text, Severity.ERROR)
