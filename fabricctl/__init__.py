"""fabricctl: keeps big Slurm jobs running through fabric faults, and says where the time went."""

__version__ = "0.1.0"


def mark(name: str) -> None:
    """Tells the job's trace that a phase of the program begins: ``mark("train")``.

    The phase before ends; ``""`` begins none. Up to seven names are told apart. In a program that
    the tracker does not watch (docs/tracker.md), and before MPI_Init, nothing happens. In C:
    ``fabric_track_mark``.
    """
    import ctypes  # here: programs that mark nothing need not load it

    told = getattr(ctypes.CDLL(None), "fabric_track_mark", None)
    if told is not None:
        told(name.encode()[:31])
