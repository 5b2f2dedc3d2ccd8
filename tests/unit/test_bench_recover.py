"""`bench/recover.py` reads what a job of many ranks says while it says it."""

import json
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from bench import needs, recover

BEGUN = "began at 1.5\nfrom step 0\nfirst step done at 2.5\n"
RANKS = [{"node": f"n{nth}"} for nth in (1, 2, 3, 4)]


class Lab:
    """A job that says a line more at each look; `job where` knows its ranks a little later."""

    def __init__(self, root: Path) -> None:
        self.paths = SimpleNamespace(shared=root)
        self.path = root / "home" / "alice" / "recover-7.out"
        self.path.parent.mkdir(parents=True)
        self.asked = 0

    def exec(self, node: str, argv: list[str], **_: object) -> SimpleNamespace:
        if argv[0] == "sbatch":
            return SimpleNamespace(stdout="7\n", stderr="", returncode=0)
        self.asked += 1
        answers = [SimpleNamespace(stdout="", stderr="no job", returncode=1)]
        answers += [
            SimpleNamespace(stdout=json.dumps({"ranks": RANKS[:n]}), stderr="", returncode=0)
            for n in (0, 2, 4)
        ]
        return answers[min(self.asked, len(answers)) - 1]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> recover.Round:
    lab = Lab(tmp_path)

    def sleep(_seconds: float) -> None:
        with lab.path.open("a") as stream:
            stream.write("at step 1\n")

    monkeypatch.setattr(recover.time, "sleep", sleep)
    lab.path.write_text(BEGUN)
    return recover.Round(lab, "place", 4, "")  # type: ignore[arg-type]


def test_a_job_that_told_no_step_yet_is_waited_for(run: recover.Round) -> None:
    assert recover.steps_told(run.output()) == []
    assert run.wait_step(0) == 1


def test_nodes_are_told_when_all_ranks_are(run: recover.Round) -> None:
    assert run.nodes() == ["n2", "n3", "n4"]


def test_a_step_that_never_comes_is_said(
    run: recover.Round, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recover, "WAIT_S", -1.0)
    with pytest.raises(SystemExit, match="step 5 did not come:\nbegan at"):
        run.wait_step(5)


def test_a_benchmark_says_at_once_which_package_its_programs_lack(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(needs, "PYTHON", Path(sys.executable))
    monkeypatch.setattr(sys, "argv", ["bench/recover.py"])
    needs.need("json", "numpy", extra="torch")
    with pytest.raises(SystemExit) as ended:
        needs.need("json", "no_such_package", extra="torch")
    assert ended.value.code == 69
    told = capsys.readouterr().err
    assert told.startswith("recover: ") and "lacks no_such_package: " in told


def test_a_benchmark_without_the_venv_says_so(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setattr(needs, "PYTHON", tmp_path / "none")
    with pytest.raises(SystemExit):
        needs.need("json", extra="dev")
    assert "make build-dev" in capsys.readouterr().err
