"""Harms jobs in a lab and holds their reports to the truth, in one go.

    python -m bench.diagnose [--seed 1] [--faults 14] [--healthy 2] [--keep DIR]

Runs ``bench.diagnose.harm`` twice (faults, then healthy jobs), and ``bench.diagnose.judge`` over
what they kept.
"""

import argparse
import subprocess
import sys
import tempfile


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--faults", type=int, default=14)
    parser.add_argument("--healthy", type=int, default=2)
    parser.add_argument("--keep", help="Traces and truth stay there.")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as own:
        keep = given.keep or own
        harm = ["bench.diagnose.harm", "--keep", keep, "--seed"]
        runs = [
            [*harm, str(given.seed), "--faults", str(given.faults)],
            [*harm, str(given.seed + 100), "--healthy", str(given.healthy)],
            ["bench.diagnose.judge", keep],
        ]
        for module, *words in runs:
            status = subprocess.run([sys.executable, "-m", module, *words], check=False).returncode
            if status:
                break
    return status


if __name__ == "__main__":
    sys.exit(main())
