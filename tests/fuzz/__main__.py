"""``python -m tests.fuzz NAME [atheris's options]``: one parser, led by coverage."""

import sys

import atheris

with atheris.instrument_imports(include=["fabricctl"]):
    from tests.fuzz.targets import CORPUS, TARGETS


def main() -> None:
    if len(sys.argv) < 2 or sys.argv[1] not in TARGETS:
        sys.exit(f"usage: python -m tests.fuzz {'|'.join(TARGETS)} [-max_total_time=60]")
    name = sys.argv.pop(1)
    kept = CORPUS / name
    kept.mkdir(parents=True, exist_ok=True)
    for number, seed in enumerate(TARGETS[name].seeds):
        (kept / f"seed-{number}").write_bytes(seed)
    atheris.Setup([*sys.argv, str(kept)], TARGETS[name].check)
    atheris.Fuzz()


main()
