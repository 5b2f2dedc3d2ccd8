"""``make bench``: figures are known again by their lines, and those that moved are told."""

import importlib.util
import json
import re
from dataclasses import asdict
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[2]
TEXT = "CPU   0.20 % of a core, ratio {ratio}\nrow 1 {ratio}\nrow 1 7\n10:11:12 done\n"


@pytest.fixture(scope="module")
def bench() -> ModuleType:
    spec = importlib.util.spec_from_file_location("bench_runner", ROOT / "tools" / "bench.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    import sys

    sys.modules["bench_runner"] = module  # dataclasses look there
    spec.loader.exec_module(module)
    return module


def run(bench: ModuleType, ratio: float, status: int = 0, cpu: str = "x") -> object:
    made = bench.Run({"cpu": cpu}, "now")
    made.results.append(bench.Result("a", status, 1.0, 0.5, TEXT.format(ratio=ratio)))
    return made


def test_every_benchmark_is_found(bench: ModuleType) -> None:
    names = bench.programs()
    assert {"agent_cost", "checkpoint", "scale", "report", "tracker"} <= set(names)
    assert bench.programs(["scale"]) == ["scale"]
    with pytest.raises(SystemExit, match="no nonsense"):
        bench.programs(["nonsense"])


def test_every_benchmark_takes_the_arguments_that_it_is_run_with(bench: ModuleType) -> None:
    """`make bench` ended in "usage:" for four of them."""
    assert set(bench.SHORT) <= set(bench.programs())
    for name in bench.programs():
        file = ROOT / "bench" / f"{name}.py"
        source = (file if file.exists() else ROOT / "bench" / name / "__main__.py").read_text()
        wanted = re.findall(r'add_argument\(\s*"\w[^)]*', source)
        assert all("nargs" in one for one in wanted), (name, wanted)
        for word in bench.SHORT.get(name, "").split():
            assert not word.startswith("--") or f'"{word}"' in source, (name, word)


def test_a_figure_that_moved_is_told_and_noise_is_not(bench: ModuleType) -> None:
    earlier = [asdict(run(bench, ratio)) for ratio in (1.0, 1.1, 0.9)]  # type: ignore[call-overload]
    assert bench.changes(run(bench, 1.2), earlier, 0.25) == []
    moved = bench.changes(run(bench, 2.0), earlier, 0.25)
    assert [(change.now, change.before) for change in moved] == [(2.0, 1.0), (2.0, 1.0)]
    assert moved[0].line.startswith("CPU")


def test_other_machines_and_failed_runs_do_not_count(bench: ModuleType) -> None:
    others = [asdict(run(bench, 1.0, cpu="y")) for _ in range(3)]  # type: ignore[call-overload]
    failed = [asdict(run(bench, 1.0, status=2)) for _ in range(3)]  # type: ignore[call-overload]
    assert bench.changes(run(bench, 9.0), [*others, *failed], 0.25) == []
    missed = [asdict(run(bench, 1.0, status=1)) for _ in range(3)]  # type: ignore[call-overload]
    assert len(bench.changes(run(bench, 9.0), missed, 0.25)) == 2


def test_the_page_escapes_and_the_history_survives_damage(
    bench: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made = bench.Run({"cpu": "<x>"}, "now", [bench.Result("a", 3, 1.0, 0.5, "<i>1</i>")])
    text = bench.page(made, [], {})
    assert "&lt;i&gt;" in text and "<i>" not in text and "status 3" in text
    history = tmp_path / "h"
    history.write_text('{"mach')
    bench.remember(history, made, made.results[0])
    bench.remember(history, made, made.results[0])
    assert [line["machine"] for line in bench.read_history(history)] == [{"cpu": "<x>"}] * 2
    assert "damaged" in capsys.readouterr().err


def test_the_page_marks_what_moved_and_json_has_the_figures(
    bench: ModuleType, tmp_path: Path
) -> None:
    earlier = [asdict(run(bench, 1.0)) for _ in range(2)]  # type: ignore[call-overload]
    _, regressed = bench.write(tmp_path, run(bench, 4.0, status=1), earlier, 0.25)
    assert regressed == {"a": "(met in 2 of 2 runs before)"}
    assert bench.worse(run(bench, 4.0), earlier) == {}
    page = (tmp_path / "bench.html").read_text()
    assert "CPU   0.20 % of a core, ratio <mark>4.0</mark>" in page
    assert "missed its goal (met in 2 of 2 runs before)" in page
    told = json.loads((tmp_path / "bench.json").read_text())
    assert told["results"][0]["figures"][0]["values"] == [0.2, 4.0] and len(told["changes"]) == 2


def test_a_program_ends_as_it_says(
    bench: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that lacks something is left out with its reason; one that hangs takes its lab down."""
    monkeypatch.setattr(bench, "ROOT", tmp_path)
    monkeypatch.setattr(bench, "BENCH", tmp_path)
    (tmp_path / "bench").mkdir()
    programs = {
        "good": "print(1)",
        "lacks": "import sys; print('torch is missing'); sys.exit(69)",
        "refused": "from fabricctl.errors import SystemRefusedError as E; raise E('no slurmd')",
        "broke": "raise ValueError('why')",
        "missed": "raise SystemExit(1)",
        "hangs": "import time\ntry:\n  print(1)\n  time.sleep(600)\nfinally:\n  print(2)",
    }
    for name, text in programs.items():
        (tmp_path / "bench" / f"{name}.py").write_text(text)
    ended = {
        name: bench.run_one(name, timeout_s=5 if name == "hangs" else 120, out=tmp_path)
        for name in programs
    }
    assert {name: result.told() for name, result in ended.items()} == {
        "good": "done",
        "lacks": "left out: torch is missing",
        "refused": "left out: no slurmd",
        "broke": "failed with status 1: ValueError: why",
        "missed": "missed its goal",
        "hangs": "took too long",
    }
    said = ended["hangs"].output
    assert ("1\n" in said) == ("2\n" in said)
