"""One node's journals as an HDF5 part."""

import os
import random
import stat
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import h5py
import numpy as np
import pytest

from fabricctl.errors import SystemRefusedError, TraceError
from fabricctl.store import hdf5, journal, part, schema
from fabricctl.store.journal import JournalWriter
from fabricctl.store.journal_reader import Journal
from fabricctl.store.trace import open_trace
from tests.support import journals
from tests.support.journals import HEADER

GIVEN = {"job": 7, "node": "n1", "nodes": "n[1-3]", "begin_real_ns": 10**18}


def life(path: Path, rows: range, header: Mapping[str, str] = HEADER) -> Journal:
    """One life of an agent, with a job row every second and the clocks at its begin."""
    writer = JournalWriter(path, header)
    first = rows.start * 10**9
    writer.append(schema.CLOCK, first, 10**18 + first, first, first, 50)
    for nth in rows:
        writer.append(schema.JOB, nth * 10**9, nth, nth, nth)
    writer.close()
    return journal.read(path)


@pytest.mark.parametrize("seed", range(5))
def test_every_value_of_every_table_survives_the_way_into_hdf5(seed: int, tmp_path: Path) -> None:
    rng = random.Random(seed)
    writer = JournalWriter(tmp_path / "j", HEADER)
    for _ in range(300):
        table = rng.choice(journals.JOURNAL_TABLES)
        writer.append(table, *journals.row(table, rng))
    writer.close()
    read = journal.read(tmp_path / "j")
    part.write_part([read], {**GIVEN, "end_real_ns": 2 * 10**18}, tmp_path / "p.h5")
    with open_trace(tmp_path / "p.h5") as trace:
        for table in journals.JOURNAL_TABLES:
            expected = read.tables[table.name]
            expected = expected[np.argsort(expected["time_mono_ns"], kind="stable")]
            assert trace.table("n1", table).tolist() == expected.tolist()


def test_what_the_caller_says_goes_before_the_journals_header(tmp_path: Path) -> None:
    read = life(tmp_path / "j", range(3))
    part.write_part([read], {**GIVEN, "user": "bob", "job": 8}, tmp_path / "p.h5")
    with open_trace(tmp_path / "p.h5") as trace:
        assert (trace.job.job, trace.job.user, trace.job.cluster) == (8, "bob", "lab")
        node = trace.nodes["n1"]
        assert (node.hostname, node.rails, node.sample_hz) == ("n1.site", ("r0", "r1"), 1.0)


def test_without_an_end_the_last_row_is_the_end(tmp_path: Path) -> None:
    part.write_part([life(tmp_path / "j", range(5, 60))], GIVEN, tmp_path / "p.h5")
    with open_trace(tmp_path / "p.h5") as trace:
        assert trace.job.end_real_ns == 10**18 + 59 * 10**9
        assert trace.nodes["n1"].end_real_ns == trace.job.end_real_ns


def test_two_lives_are_one_line_of_time_with_the_gap_on_record(tmp_path: Path) -> None:
    lives = [life(tmp_path / "0", range(5)), life(tmp_path / "1", range(9, 12))]
    part.write_part(lives, GIVEN, tmp_path / "p.h5")
    with open_trace(tmp_path / "p.h5") as trace:
        rows = trace.table("n1", schema.JOB)["processes"].tolist()
        assert rows == [0, 1, 2, 3, 4, 9, 10, 11]
        assert trace.nodes["n1"].lives == 2
        assert trace.table("n1", schema.LIFE).tolist() == [
            (0, 4 * 10**9, 6, b""),
            (9 * 10**9, 11 * 10**9, 4, b""),
        ]


def test_rows_are_sorted_by_time_where_lives_overlap_or_rows_came_late(tmp_path: Path) -> None:
    lives = [life(tmp_path / "0", range(6)), life(tmp_path / "1", range(4, 8))]
    part.write_part(lives, GIVEN, tmp_path / "p.h5")
    with open_trace(tmp_path / "p.h5") as trace:
        assert trace.table("n1", schema.JOB)["processes"].tolist() == [0, 1, 2, 3, 4, 4, 5, 5, 6, 7]


def test_lives_of_two_boots_are_not_mixed_for_their_clocks_began_anew(tmp_path: Path) -> None:
    second = {**HEADER, "boot_id": "b1", "begin_real_ns": "1790000000000009000"}
    lives = [life(tmp_path / "0", range(5, 9)), life(tmp_path / "1", range(3), second)]
    part.write_part(lives, GIVEN, tmp_path / "p.h5")
    with open_trace(tmp_path / "p.h5") as trace:
        assert list(trace.nodes) == ["n1", "n1@1790000000000009000"]
        assert [node.node for node in trace.nodes.values()] == ["n1", "n1"]
        assert [node.boot_id for node in trace.nodes.values()] == ["b0", "b1"]
        counts = [trace.table(name, schema.JOB)["processes"].tolist() for name in trace.nodes]
        assert counts == [[5, 6, 7, 8], [0, 1, 2]]


def test_a_node_that_booted_twice_in_one_allocation_has_three_groups(tmp_path: Path) -> None:
    """The agents of all its boots say when the allocation began, and that is one instant."""
    lives = [
        life(tmp_path / str(nth), range(nth, 9), {**HEADER, "boot_id": f"b{nth}"})
        for nth in range(3)
    ]
    part.write_part(lives, GIVEN, tmp_path / "p.h5")
    begin = int(HEADER["begin_real_ns"])
    with open_trace(tmp_path / "p.h5") as trace:
        assert list(trace.nodes) == ["n1", f"n1@{begin}", f"n1@{begin + 1}"]
        counts = [len(trace.table(name, schema.JOB)) for name in trace.nodes]
        assert counts == [9, 8, 7]


def test_a_damaged_journal_says_so_in_its_life(tmp_path: Path) -> None:
    data = journals.write(tmp_path / "j", rows=10)
    part.write_part([journal.read(data[:-3])], GIVEN, tmp_path / "p.h5")
    with open_trace(tmp_path / "p.h5") as trace:
        (row,) = trace.table("n1", schema.LIFE)
        assert row["rows"] == 5
        assert row["damage"].startswith(b"153 bytes skipped")


def test_a_header_that_makes_no_sense_costs_only_what_it_says(tmp_path: Path) -> None:
    wrong = {**HEADER, "uid": "root", "sample_hz": "often", "nodes": "n[", "end_real_ns": "9" * 30}
    part.write_part([life(tmp_path / "j", range(3), wrong)], GIVEN, tmp_path / "p.h5")
    with open_trace(tmp_path / "p.h5") as trace:
        assert (trace.job.uid, trace.nodes["n1"].sample_hz) == (None, None)
        assert trace.job.user == "alice"


def test_clock_rows_that_make_no_sense_do_not_stop_the_part(tmp_path: Path) -> None:
    writer = JournalWriter(tmp_path / "j", HEADER)
    writer.append(schema.CLOCK, -(2**63), 2**63 - 1, 0, 0, 0)
    writer.append(schema.JOB, 2**63 - 1, 0, 0, 0)
    writer.close()
    part.write_part([journal.read(tmp_path / "j")], GIVEN, tmp_path / "p.h5")
    with open_trace(tmp_path / "p.h5") as trace:
        assert trace.job.end_real_ns == GIVEN["begin_real_ns"]


def test_a_node_without_any_journal_still_makes_a_part(tmp_path: Path) -> None:
    part.write_part([], GIVEN, tmp_path / "p.h5")
    with open_trace(tmp_path / "p.h5") as trace:
        assert trace.nodes["n1"].lives == 0
        assert trace.job.end_real_ns == trace.job.begin_real_ns
        assert all(len(trace.table("n1", table)) == 0 for table in schema.TABLES)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"job": None}, "attribute job is missing"),
        ({"node": ""}, "attribute node is missing"),
        ({"node": "../x"}, "'../x' is not a node name"),
        ({"node": ".hidden"}, "'.hidden' is not a node name"),
        ({"begin_real_ns": "soon"}, "attribute begin_real_ns is 'soon'"),
        ({"uid": 1 << 70}, "attribute uid is '1180591620717411303424'"),
        ({"nodes": "n[1-"}, "host list 'n[1-': brackets do not match"),
    ],
)
def test_wrong_attributes_are_refused_by_name(
    given: dict[str, str | int], message: str, tmp_path: Path
) -> None:
    attributes = {k: v for k, v in {**GIVEN, **given}.items() if v is not None}
    with pytest.raises(TraceError) as caught:
        part.write_part([], attributes, tmp_path / "p.h5")
    assert str(caught.value) == f"part p.h5: {message}"
    assert not list(tmp_path.iterdir())


def test_the_file_and_new_directories_are_the_owners_alone(tmp_path: Path) -> None:
    old = os.umask(0)
    try:
        part.write_part([], GIVEN, tmp_path / "a" / "b" / "p.h5")
    finally:
        os.umask(old)
    modes = [tmp_path / "a", tmp_path / "a" / "b", tmp_path / "a" / "b" / "p.h5"]
    assert [stat.S_IMODE(path.stat().st_mode) for path in modes] == [0o700, 0o700, 0o600]


def test_writing_again_replaces_the_part_and_what_a_killed_writer_left(tmp_path: Path) -> None:
    out = tmp_path / "n1.5.h5"
    part.write_part([life(tmp_path / "j", range(3))], GIVEN, out)
    left = tmp_path / f".n1.5.h5.{os.uname().nodename}.{2**22 + 1}.tmp"  # beyond any pid
    left.write_bytes(b"half a file")
    part.write_part([life(tmp_path / "k", range(9))], GIVEN, out)
    assert {path.name for path in tmp_path.iterdir()} == {"j", "k", "n1.5.h5"}
    with open_trace(out) as trace:
        assert len(trace.table("n1", schema.JOB)) == 9


def test_a_directory_removed_by_a_merge_in_between_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "parts" / "p.h5"
    new_file, calls = hdf5.new_file, []

    def racing(path: Path) -> object:
        calls.append(path)
        if len(calls) == 1:
            path.parent.rmdir()
        return new_file(path)

    monkeypatch.setattr(hdf5, "new_file", racing)
    part.write_part([], GIVEN, out)
    assert (len(calls), out.exists()) == (2, True)


@pytest.mark.parametrize("kib", [4, 12, 20, 40, 100, 400, 1500])
def test_a_full_disk_is_one_clear_error_and_leaves_nothing_behind(kib: int, tmp_path: Path) -> None:
    """In a process of its own: HDF5 used to crash when such a process ended."""
    if os.geteuid() != 0:
        pytest.skip("mounting a small tmpfs needs root")
    disk = tmp_path / "disk"
    disk.mkdir()
    code = f"""
import random
import numpy as np
from pathlib import Path
from fabricctl.errors import SystemRefusedError
from fabricctl.store import dtypes, part, schema
from fabricctl.store.journal_reader import Journal
rail = dtypes.dtype(schema.RAIL)
rows = np.frombuffer(random.Random(1).randbytes(rail.itemsize * 25_000), rail)
tables = {{table.name: dtypes.empty(table) for table in schema.TABLES}} | {{"rail": rows}}
try:
    part.write_part([Journal({{}}, 1, tables, None)], {GIVEN!r}, Path({str(disk / "p.h5")!r}))
except SystemRefusedError as error:
    print(error)
"""
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={kib}k", "none", disk], check=True)
    try:
        answer = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=False
        )
        assert (answer.returncode, answer.stderr) == (0, "")
        assert answer.stdout == f"trace {disk}/p.h5: cannot be written: No space left on device\n"
        assert not list(disk.iterdir())
    finally:
        subprocess.run(["umount", disk], check=True)


def test_a_place_that_cannot_be_written_is_one_clear_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(SystemRefusedError, match="cannot be made: Not a directory"):
        part.write_part([], GIVEN, tmp_path / "file" / "below" / "p.h5")


def test_no_part_of_a_file_is_beyond_its_checksums(tmp_path: Path) -> None:
    """A global heap would be, where HDF5 keeps text of variable length."""
    part.write_part([life(tmp_path / "j", range(3))], GIVEN, tmp_path / "p.h5")
    data = (tmp_path / "p.h5").read_bytes()
    assert b"GCOL" not in data
    assert b"OHDR" in data  # object headers of the second version, which have checksums
    assert b"TREE" not in data  # nor anything of the first


def test_columns_are_documented_in_the_file_itself(tmp_path: Path) -> None:
    part.write_part([life(tmp_path / "j", range(3))], GIVEN, tmp_path / "p.h5")
    with h5py.File(tmp_path / "p.h5") as file:
        said = file["schema/job"].attrs
        assert said["about"].decode() == schema.JOB.doc
        assert said["unit"].tolist() == [b"ns", b"ns", b"B", b"1"]
        assert said["clock"].tolist() == [b"CLOCK_MONOTONIC", b"", b"", b""]
        assert file["nodes/n1/job"].dtype == file["schema/job"].dtype


def test_a_job_of_ten_thousand_oddly_named_nodes_fits(tmp_path: Path) -> None:
    rng = random.Random(1)
    names = sorted({f"x{rng.randrange(10**8)}-{rng.randrange(10**6)}c" for _ in range(10_000)})
    given = {**GIVEN, "node": names[0], "nodes": ",".join(names)}
    part.write_part([], given, tmp_path / "p.h5")
    with open_trace(tmp_path / "p.h5") as trace:
        assert set(trace.job.nodes) == set(names)
