"""``python -m fabricctl.paths.clean``: removes what is left of link failover on this node.

Only what is certainly ours: our routing protocol number, our tables, devices of our group, the
sysctls written down before they were changed. What a living fabric-pathd holds stays, unless
``--stop`` ends it first.
"""

import argparse
import sys
from pathlib import Path

from fabricctl import config
from fabricctl.errors import FabricError
from fabricctl.paths import keeper, launch
from fabricctl.paths.files import PathsFiles

STOP_WAIT_S = 5.0


def main(argv: list[str] | None = None) -> int:
    """Exit statuses as of ``fabricctl``."""
    parser = argparse.ArgumentParser(prog="fabricctl.paths.clean", description=__doc__)
    parser.add_argument("--run-dir", type=Path, help="instead of node.run_dir")
    parser.add_argument("--keep", type=int, nargs="*", default=[], metavar="JOB")
    parser.add_argument("--stop", action="store_true", help="end living ones, too")
    given = parser.parse_args(argv)
    try:
        run_dir = given.run_dir or config.load().node.run_dir
        if given.stop:
            keeper.stop_all(run_dir, STOP_WAIT_S)
        files = PathsFiles(run_dir)
        said = launch.clean(files, given.keep)
        living = set(keeper.living_leases(files.leases)) | set(given.keep)
        for job in set(files.jobs()) - living:
            files.remove(job)
    except FabricError as error:
        sys.stderr.write(f"fabricctl.paths.clean: {error}\n")
        return error.exit_status
    sys.stdout.write(f"{said or 'removed=0'}\n")
    return 0 if said.startswith("removed=") or not said else 71


if __name__ == "__main__":
    sys.exit(main())
