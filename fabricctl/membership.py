"""A job as one of its nodes knows it: what its user's programs need to talk to the others."""

from dataclasses import dataclass
from pathlib import Path

from fabricctl import fields, hostlist, layout
from fabricctl.errors import DataError, FabricError, NotFoundError

_MOST_BYTES = 60_000  # of a file that one of ours wrote


@dataclass(frozen=True)
class Member:
    """A job as one of its nodes knows it."""

    job: int
    key: bytes
    nodes: tuple[str, ...]
    node: str  # this one
    spares: int

    @classmethod
    def here(cls, files: layout.NodeFiles, job: int) -> "Member":
        """From the job directory on this node, which only the job's user and root can read.

        Raises :class:`NotFoundError` when the job is not here, or not the caller's.
        """
        return cls.read(files.envelope(job), job)

    @classmethod
    def read(cls, path: Path, job: int) -> "Member":
        """As :meth:`here`, from the envelope in that directory."""
        try:
            given = fields.decode(read_small(path))
            return cls(
                job,
                bytes.fromhex(given["key"]),
                tuple(hostlist.expand(given["nodes"])),
                given["node"],
                int(given.get("spares", "0")),
            )
        except OSError as error:
            raise NotFoundError(
                f"job {job}: not a protected job of yours on this node: {path}: {error.strerror}"
            ) from None
        except (KeyError, ValueError, FabricError) as error:
            raise DataError(f"{path}: {error}") from None


def read_small(path: Path) -> str:
    """Raises OSError."""
    with path.open("rb") as stream:
        return stream.read(_MOST_BYTES).decode(errors="replace")
