"""fabricctl: keeps big Slurm jobs running through fabric faults, and says where the time went."""

__version__ = "0.1.0"
