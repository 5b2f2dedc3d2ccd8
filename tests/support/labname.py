"""Names of this run's labs: runs side by side on one machine each set FABRICCTL_LAB."""

import os
import zlib

PREFIX = os.environ.get("FABRICCTL_LAB", "pytest")
# For what the machine has only one of, such as user ids: 0 to 999, by the prefix.
NUMBER = zlib.crc32(PREFIX.encode()) % 1000


def lab_name(what: str) -> str:
    """The name of a lab of this run, apart from the shared one."""
    return f"{PREFIX}-{what}"
