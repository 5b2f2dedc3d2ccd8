"""Every exception that library code raises.

::

    FabricError                     what failed, on which object, what to do
    ├── UsageError                  the caller's words are wrong               exit 2
    │   ├── ConfigError             a configuration file                       exit 78
    │   └── EnvelopeError           a job's envelope                           exit 2
    ├── DataError                   outside data breaks its format             exit 65
    │   ├── FieldsError             ``key=value`` text
    │   └── TraceError              a journal or an HDF5 trace
    ├── NotFoundError               no such job, trace, node                   exit 66
    ├── SlurmError                  a Slurm command or library call            exit 69
    ├── SystemRefusedError               the kernel or a permission said no         exit 71
    ├── ClockError                  no job time, or none sure enough           exit 69
    └── LabError                    the lab on one machine                     exit 1

Only the command line prints these and exits; ``exit_status`` says with what (sysexits.h).
"""


class FabricError(Exception):
    """Base of all errors raised on purpose; the message is meant for the user."""

    exit_status = 1


class UsageError(FabricError):
    """An option, argument or value that the caller can correct."""

    exit_status = 2


class ConfigError(UsageError):
    """A configuration file: names the file, the key and the nearest known one."""

    exit_status = 78


class EnvelopeError(UsageError):
    """A job envelope (docs/envelope.md) that does not hold what it must."""


class DataError(FabricError):
    """Data from outside (network, file, environment) that breaks its format."""

    exit_status = 65


class FieldsError(DataError):
    """``key=value`` text that breaks the rules in :mod:`fabricctl.fields`."""


class TraceError(DataError):
    """A journal or HDF5 trace that is not one of ours, or is damaged beyond reading."""


class NotFoundError(FabricError):
    """The named job, trace, node or file is not there."""

    exit_status = 66


class SlurmError(FabricError):
    """Slurm said no, or said something that cannot be read."""

    exit_status = 69


class SystemRefusedError(FabricError):
    """The kernel, a permission or a missing program stands in the way."""

    exit_status = 71


class ClockError(FabricError):
    """The job clock has no time to give, or none that is sure enough for the caller."""

    exit_status = 69


class LabError(FabricError):
    """The lab cannot do what was asked of it."""
