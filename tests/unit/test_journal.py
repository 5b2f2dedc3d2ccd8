"""The journal: what was flushed is there, whatever happens to the writer, the disk or the file."""

import contextlib
import os
import random
import signal
import stat
import struct
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from fabricctl.errors import FieldsError, SystemRefusedError
from fabricctl.store import journal, schema
from fabricctl.store.journal import JournalWriter
from tests.support import journals
from tests.support.journals import HEADER


@pytest.mark.parametrize("seed", range(20))
def test_rows_of_all_tables_come_back_as_they_were_appended(seed: int, tmp_path: Path) -> None:
    rng = random.Random(seed)
    writer = JournalWriter(tmp_path / "j", HEADER)
    expected = defaultdict(list)
    for _ in range(rng.randrange(200)):
        table = rng.choice(journals.JOURNAL_TABLES)
        given = journals.row(table, rng)
        writer.append(table, *given)
        expected[table.name].append(journals.stored_row(table, given))
        if rng.random() < 0.2:
            writer.flush()
    writer.close()
    found = journal.read(tmp_path / "j")
    assert found.attributes == HEADER
    assert found.schema_version == schema.SCHEMA_VERSION
    assert found.damage is None
    assert {name: rows.tolist() for name, rows in found.tables.items() if len(rows)} == expected


def test_a_journal_is_the_owners_alone_and_never_reused(tmp_path: Path) -> None:
    old = os.umask(0)
    try:
        JournalWriter(tmp_path / "j", HEADER).close()
    finally:
        os.umask(old)
    assert stat.S_IMODE((tmp_path / "j").stat().st_mode) == 0o600
    with pytest.raises(SystemRefusedError, match=r"journal .*j: cannot be created: File exists"):
        JournalWriter(tmp_path / "j", HEADER)
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(SystemRefusedError):
        JournalWriter(tmp_path / "link", HEADER)
    assert not (tmp_path / "elsewhere").exists()


def test_attributes_that_no_header_can_hold_are_refused_before_a_file_is_made(
    tmp_path: Path,
) -> None:
    with pytest.raises(FieldsError, match="control character"):
        JournalWriter(tmp_path / "j", {"user": "a\nb"})
    assert not (tmp_path / "j").exists()


def test_the_writer_needs_the_standard_library_alone() -> None:
    code = "import sys, fabricctl.store.journal; print({'numpy', 'h5py'} & sys.modules.keys())"
    answer = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert answer.stdout == "set()\n"


def test_what_is_known_later_is_added_to_the_header(tmp_path: Path) -> None:
    writer = JournalWriter(tmp_path / "j", {"job": "7"})
    writer.append(schema.JOB, 1, 2, 3, 4)
    writer.describe({"rails": "r0 r1"})
    with pytest.raises(FieldsError):
        writer.describe({"Rails": "r0"})
    writer.append(schema.JOB, 2, 2, 3, 4)
    writer.close()
    found = journal.read(tmp_path / "j")
    assert found.attributes == {"job": "7", "rails": "r0 r1"}
    assert len(found.tables["job"]) == 2


def test_appended_rows_are_not_in_the_file_before_the_flush_and_all_after_it(
    tmp_path: Path,
) -> None:
    writer = JournalWriter(tmp_path / "j", HEADER)
    writer.append(schema.JOB, 1, 2, 3, 4)
    assert len(journal.read(tmp_path / "j").tables["job"]) == 0
    writer.flush()
    assert journal.read(tmp_path / "j").tables["job"].tolist() == [(1, 2, 3, 4)]
    size = (tmp_path / "j").stat().st_size
    writer.flush()
    assert (tmp_path / "j").stat().st_size == size
    writer.close()
    writer.close()


def test_a_wrong_row_is_the_callers_bug_and_leaves_no_trace(tmp_path: Path) -> None:
    writer = JournalWriter(tmp_path / "j", HEADER)
    for wrong in ((1, 2, 3), (1, 2, 3, -1), (1, 2, 3, 2**32), (None, 2, 3, 4)):
        with pytest.raises(struct.error, match=r"out of range|items for packing|required|format"):
            writer.append(schema.JOB, *wrong)
    writer.close()
    found = journal.read(tmp_path / "j")
    assert (len(found.tables["job"]), found.damage) == (0, None)


def _counting_writer(path: Path, report_fd: int) -> None:
    """Appends and flushes for ever; tells each row that was flushed."""
    writer, nth = JournalWriter(path, HEADER), 0
    while True:
        for _ in range(random.randrange(1, 400)):
            writer.append(schema.JOB, nth, nth, nth, nth)
            writer.append(schema.NOTE, nth, nth, 0, "agent", f"row {nth}")
            nth += 1
        writer.flush()
        os.write(report_fd, nth.to_bytes(8, "little"))


@pytest.mark.parametrize("seed", range(50))
def test_what_was_flushed_survives_kill_9_at_any_moment(seed: int, tmp_path: Path) -> None:
    read_fd, write_fd = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            random.seed(seed)
            _counting_writer(tmp_path / "j", write_fd)
        finally:
            os._exit(1)
    os.close(write_fd)
    first = os.read(read_fd, 8)
    time.sleep(random.Random(seed).random() * 0.03)
    os.kill(pid, signal.SIGKILL)
    assert os.waitpid(pid, 0)[1] == signal.SIGKILL
    reports = first
    while block := os.read(read_fd, 65_536):
        reports += block
    os.close(read_fd)
    flushed = int.from_bytes(reports[-8:], "little")
    found = journal.read(tmp_path / "j")
    for name, column in (("job", "processes"), ("note", "time_mono_ns")):
        rows = found.tables[name][column].tolist()
        assert len(rows) >= flushed
        assert rows == list(range(len(rows)))
    assert found.attributes == HEADER


def test_a_journal_torn_at_any_byte_gives_every_whole_frame_before(tmp_path: Path) -> None:
    data = journals.write(tmp_path / "j", rows=30)
    ends = [end for _, end in journals.frames(data)]
    for cut in range(ends[0], len(data)):
        found = journal.read(data[:cut])
        whole = sum(end <= cut for end in ends)
        assert found.tables["job"]["processes"].tolist() == list(range(5 * (whole - 1)))
        torn = cut - ends[whole - 1]
        if torn:
            assert found.damage == f"{torn} bytes skipped, the first at offset {ends[whole - 1]}"
        else:
            assert found.damage is None


def test_a_journal_torn_at_any_byte_and_written_on_gives_all_other_frames(tmp_path: Path) -> None:
    """What a torn write looks like when a file system gives back old blocks after it."""
    data = journals.write(tmp_path / "j", rows=15)
    frames = journals.frames(data)
    begin, end = frames[2]
    for cut in range(begin, end):
        for filler in (b"", b"\xee" * 37, journal.MAGIC, data[begin : begin + 15]):
            found = journal.read(data[:cut] + filler + data[end:])
            rows = found.tables["job"]["processes"].tolist()
            assert rows == [0, 1, 2, 3, 4, 10, 11, 12, 13, 14]


def test_a_flipped_bit_costs_one_frame_and_invents_nothing(tmp_path: Path) -> None:
    data = journals.write(tmp_path / "j", rows=30)
    frames = journals.frames(data)
    for at in range(len(data)):
        flipped = bytearray(data)
        flipped[at] ^= 1 << (at % 8)
        found = journal.read(bytes(flipped))
        hit = next(nth for nth, (begin, end) in enumerate(frames) if begin <= at < end)
        lost = set(range(5 * (hit - 1), 5 * hit)) if hit else set()
        assert set(found.tables["job"]["processes"].tolist()) == set(range(30)) - lost
        assert found.damage is not None
        assert found.attributes == (HEADER if hit else {})


@contextlib.contextmanager
def _small_disk(path: Path, kib: int) -> Iterator[Path]:
    if os.geteuid() != 0:
        pytest.skip("mounting a small tmpfs needs root")
    path.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={kib}k", "none", path], check=True)
    try:
        yield path
    finally:
        subprocess.run(["umount", path], check=True)


def test_a_full_disk_delays_rows_and_loses_none_that_fit_into_memory(tmp_path: Path) -> None:
    with _small_disk(tmp_path / "disk", 64) as disk:
        writer = JournalWriter(disk / "j", HEADER)
        (disk / "fill").write_bytes(bytes(56 << 10))
        for nth in range(2000):
            writer.append(schema.JOB, nth, nth, nth, nth)
            if nth % 10 == 9:
                writer.flush()
        assert writer.problem == f"journal {disk}/j: No space left on device"
        before = journal.read(disk / "j").tables["job"]
        assert before["processes"].tolist() == list(range(len(before)))
        assert 0 < len(before) < 2000
        (disk / "fill").unlink()
        writer.flush()
        assert (writer.problem, writer.lost_rows) == (None, 0)
        writer.close()
        found = journal.read(disk / "j")
        assert found.tables["job"]["processes"].tolist() == list(range(2000))
        assert found.damage is None


def test_a_disk_full_from_the_start_still_gets_the_header_when_space_returns(
    tmp_path: Path,
) -> None:
    with _small_disk(tmp_path / "disk", 64) as disk:
        with contextlib.suppress(OSError):
            (disk / "fill").write_bytes(bytes(1 << 20))
        writer = JournalWriter(disk / "j", HEADER)
        assert writer.problem == f"journal {disk}/j: No space left on device"
        (disk / "fill").unlink()
        writer.close()
        assert journal.read(disk / "j").attributes == HEADER


def test_rows_beyond_the_memory_for_a_full_disk_are_counted_as_lost(tmp_path: Path) -> None:
    with _small_disk(tmp_path / "disk", 64) as disk:
        writer = JournalWriter(disk / "j", HEADER)
        with contextlib.suppress(OSError):
            (disk / "fill").write_bytes(bytes(1 << 20))
        rows = 2 * journal.MAX_PENDING_BYTES // schema.JOB.packer.size
        for nth in range(rows):
            writer.append(schema.JOB, nth, nth, nth, nth)
            if nth % 500 == 499:
                writer.flush()
        (disk / "fill").unlink()
        subprocess.run(["mount", "-o", "remount,size=4m", disk], check=True)
        writer.append(schema.JOB, 1, 1, 1, 1)
        writer.flush()
        writer.append(schema.JOB, 2, 2, 2, 2)
        writer.close()
        found = journal.read(disk / "j")
        assert found.damage is None
        assert rows // 3 < writer.lost_rows < rows
        assert len(found.tables["job"]) + writer.lost_rows == rows + 2
        assert found.tables["job"]["processes"][-1] == 2


def test_a_file_size_limit_is_a_full_disk_and_needs_no_root(tmp_path: Path) -> None:
    code = f"""
import resource
from pathlib import Path
from fabricctl.store import journal, schema
writer = journal.JournalWriter(Path({str(tmp_path / "j")!r}), {HEADER!r})
resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 10**6))
for nth in range(1000):
    writer.append(schema.JOB, nth, nth, nth, nth)
    writer.flush()
print(writer.problem)
resource.setrlimit(resource.RLIMIT_FSIZE, (10**6, 10**6))
writer.close()
print(writer.problem, writer.lost_rows)
"""
    answer = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert answer.stdout == f"journal {tmp_path}/j: File too large\nNone 0\n"
    found = journal.read(tmp_path / "j")
    assert found.tables["job"]["processes"].tolist() == list(range(1000))
    assert found.damage is None


def test_more_rows_at_once_than_a_frame_can_count_are_lost_and_counted(tmp_path: Path) -> None:
    small = schema.Table("small", 4, "", (schema.Column("x", "B", "1", ""),))
    writer = JournalWriter(tmp_path / "j", HEADER)
    for _ in range(journal.MAX_ROWS + 3):
        writer.append(small, 1)
    assert writer.lost_rows == 3
    writer.close()


def test_rows_are_structured_arrays_in_the_schemas_order(tmp_path: Path) -> None:
    journals.write(tmp_path / "j", rows=3)
    rows = journal.read(tmp_path / "j").tables["job"]
    assert rows.dtype.names == tuple(column.name for column in schema.JOB.columns)
    assert isinstance(rows, np.ndarray)
