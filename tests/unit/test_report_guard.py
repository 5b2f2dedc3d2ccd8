"""Bad traces end in a report or in one clear error; what harms the reader harms a child only."""

import os
import signal
import time
from pathlib import Path

import pytest

from fabricctl.errors import NotFoundError, TraceError
from fabricctl_analysis.build import renderings, report_of
from fabricctl_analysis.findings import findings
from fabricctl_analysis.guard import NO_LIMITS, Limits, guarded
from fabricctl_analysis.when import When
from tests.support.mutate import mutated
from tests.support.traces import Plan, write

HERE = Path("job.h5")


def test_texts_come_back_whatever_is_in_them() -> None:
    text = "ä\n\x00\udcff" * 100_000
    assert guarded(HERE, lambda: {"a": text.replace("\udcff", "")}, NO_LIMITS) == {
        "a": text.replace("\udcff", "")
    }


def test_an_error_comes_back_as_what_it_was() -> None:
    def work() -> dict[str, str]:
        raise NotFoundError("no such thing")

    with pytest.raises(NotFoundError, match=r"^no such thing$"):
        guarded(HERE, work, NO_LIMITS)


def test_a_crash_of_the_reader_is_told() -> None:
    def work() -> dict[str, str]:
        os.kill(os.getpid(), signal.SIGSEGV)
        return {}

    with pytest.raises(TraceError, match=r"trace job\.h5: damaged: reading it ended with SIGSEGV"):
        guarded(HERE, work, NO_LIMITS)


def test_a_reader_that_loops_is_ended() -> None:
    def work() -> dict[str, str]:
        while True:
            pass

    with pytest.raises(TraceError, match="not read within 1 s"):
        guarded(HERE, work, Limits(None, 1))


def test_a_reader_that_waits_is_ended() -> None:
    def work() -> dict[str, str]:
        time.sleep(300)
        return {}

    begin_s = time.monotonic()
    with pytest.raises(TraceError, match="not read within 1 s"):
        guarded(HERE, work, Limits(None, 1))
    assert time.monotonic() - begin_s < 60


def test_memory_is_bounded() -> None:
    with pytest.raises(TraceError, match="needs more than 3 GiB of memory"):
        guarded(HERE, lambda: {"a": "x" * (1 << 30)}, Limits(1 << 28, None))


def test_a_bug_of_ours_shows_its_traceback(capfd: pytest.CaptureFixture[str]) -> None:
    def work() -> dict[str, str]:
        raise ZeroDivisionError

    with pytest.raises(SystemExit) as end:
        guarded(HERE, work, NO_LIMITS)
    assert end.value.code == 1
    assert "ZeroDivisionError" in capfd.readouterr().err


@pytest.mark.skipif(os.geteuid() != 0, reason="only root becomes somebody else")
def test_root_reads_as_the_files_owner(tmp_path: Path) -> None:
    for above in (tmp_path, *tmp_path.parents):
        if above.stat().st_uid == 0 and above != Path("/tmp"):
            above.chmod(above.stat().st_mode | 0o055)
        if above == Path("/tmp"):
            break
    path = tmp_path / "x"
    path.write_text("")
    os.chown(path, 12345, 54321)

    def who() -> dict[str, str]:
        return {"ids": f"{os.getresuid()} {os.getresgid()} {os.getgroups()}"}

    said = guarded(path, who, NO_LIMITS)["ids"]
    assert said == "(12345, 12345, 12345) (54321, 54321, 54321) []"


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    folder = tmp_path_factory.mktemp("good")
    plan = Plan(nodes=["n1", "n2"], seconds=20, every_table=True)
    return write(plan, folder / "alice").read_bytes()


@pytest.mark.parametrize("first", range(0, 40, 10))
def test_bad_files_give_a_report_or_one_line(first: int, good: bytes, tmp_path: Path) -> None:
    """bench/fuzz_report.py does this ten thousand times."""
    path = tmp_path / "bad.h5"
    for seed in range(first, first + 10):
        mutated(good, seed, path)
        try:
            guarded(path, lambda: renderings(path, ["text", "json"]), Limits.of(path))
        except TraceError as error:
            assert str(error).isprintable()


def test_one_damaged_table_costs_that_table_alone(tmp_path: Path) -> None:
    import h5py

    path = write(Plan(seconds=20, nodes=["n1", "n2"]), tmp_path / "alice")
    with h5py.File(path) as file:
        chunk = file["nodes/n2/host"].id.get_chunk_info(0)
    data = bytearray(path.read_bytes())
    data[chunk.byte_offset + 40] ^= 0xFF
    path.write_bytes(data)
    report = report_of(path)
    found = findings(report, When(report.whole))
    assert [one.kind for one in found if one.nodes == ("n2",)] == ["damaged"]
    assert "The trace of n2 is damaged" in found[0].text
    assert [one.what for one in report.unmeasured if one.damaged] == ["table host"]
    figures = {node.name: node.figures["cpu_mean"].value for node in report.nodes}
    assert figures["n1"] is not None and figures["n2"] is None
