"""Journals that nobody of ours wrote, or that another version did."""

import os
import random
import struct
import time
import zlib
from pathlib import Path

import pytest

from fabricctl.errors import TraceError
from fabricctl.store import journal, journal_reader, schema
from fabricctl.store.journal import frame
from tests.support import journals


def header(**more: str) -> bytes:
    text = "\n".join(f"{k}={v}" for k, v in {"schema_version": "1", "job": "7", **more}.items())
    return frame(0, 1, text.encode())


def job_row(nth: int) -> bytes:
    return schema.JOB.packer.pack(nth, nth, nth, nth)


@pytest.mark.parametrize("data", [b"", b"\0" * 4096, b"\x89HDF\r\n\x1a\n" + bytes(512), b"job=7\n"])
def test_a_file_without_a_frame_is_no_journal(data: bytes, tmp_path: Path) -> None:
    (tmp_path / "j").write_bytes(data)
    for source in (data, tmp_path / "j"):
        with pytest.raises(TraceError, match=r"empty|not a journal"):
            journal.read(source)


@pytest.mark.parametrize("kind", ["missing", "directory", "link", "fifo"])
def test_what_is_no_file_is_refused_and_not_waited_for(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "j"
    (tmp_path / "real").write_bytes(header())
    if kind == "directory":
        path.mkdir()
    elif kind == "link":
        path.symlink_to(tmp_path / "real")
    elif kind == "fifo":
        os.mkfifo(path)
    with pytest.raises(TraceError, match=r"cannot be opened|not a regular file"):
        journal.read(path)


def test_a_descriptor_is_read_whole_and_neither_moved_nor_closed(tmp_path: Path) -> None:
    journals.write(tmp_path / "j", rows=5)
    with (tmp_path / "j").open("rb") as stream:
        stream.seek(17)
        assert len(journal.read(stream.fileno()).tables["job"]) == 5
        assert stream.tell() == 17


def test_unknown_tables_and_rows_of_unknown_length_are_skipped_and_said() -> None:
    data = header() + frame(200, 1, b"abc") + frame(3, 2, b"x" * 31) + frame(3, 1, b"x" * 9)
    data += frame(3, 0, b"") + frame(3, 1, job_row(4)) + frame(3, 5, b"")
    found = journal.read(data)
    assert found.tables["job"].tolist() == [(4, 4, 4, 4)]
    assert found.damage == "table number 200 is not known; rows of table job have an unknown length"


def test_a_header_that_breaks_its_format_is_no_header() -> None:
    found = journal.read(frame(0, 1, b"job=7\njob=8") + frame(3, 1, job_row(1)))
    assert found.attributes == {}
    assert found.schema_version is None
    assert found.damage == "no header; header: fields: key 'job' is given twice"


def test_a_later_header_adds_and_changes_nothing() -> None:
    found = journal.read(header(node="n1") + header(node="n2", array_job="7"))
    assert found.attributes["node"] == "n1"
    assert found.attributes["array_job"] == "7"
    assert found.damage is None


def test_headers_without_end_do_not_fill_the_memory() -> None:
    many = b"".join(header(**{f"k{number}": "v"}) for number in range(1000))
    found = journal.read(many)
    assert len(found.attributes) <= 64
    assert found.damage == "header: too many attributes"


def test_a_schema_version_that_is_no_number_is_not_known() -> None:
    assert journal.read(header(schema_version="²")).schema_version is None


def test_rows_of_an_older_version_lack_columns_that_were_not_measured() -> None:
    older = job_row(5)[:24]  # without `processes`
    found = journal.read(header() + frame(3, 2, older * 2) + frame(3, 1, job_row(6)))
    assert found.tables["job"].tolist() == [(5, 5, 5, 2**32 - 1)] * 2 + [(6, 6, 6, 6)]
    assert found.damage is None


def test_rows_of_a_newer_version_lose_the_columns_that_this_one_does_not_know() -> None:
    found = journal.read(header() + frame(3, 2, (job_row(5) + b"more") * 2))
    assert found.tables["job"].tolist() == [(5, 5, 5, 5)] * 2


def test_a_frame_of_another_frame_version_is_not_guessed_at() -> None:
    payload = job_row(1)
    head = struct.pack("<4sBBHI", journal.MAGIC, 2, 3, 1, len(payload))
    newer = head + struct.pack("<I", zlib.crc32(head + payload)) + payload
    found = journal.read(header() + newer)
    assert len(found.tables["job"]) == 0
    assert found.damage is not None


def test_garbage_between_frames_is_skipped_wherever_it_meets_the_readers_window() -> None:
    rng = random.Random(3)
    data, count = bytearray(header()), 0
    while len(data) < 12 << 20:
        rows = rng.randrange(1, 60_000)
        payload = b"".join(job_row(count + nth) for nth in range(min(rows, 20_000)))
        data += frame(3, len(payload) // 28, payload)
        count += len(payload) // 28
        data += rng.randbytes(rng.choice((0, 1, 3, 1 << 20))) + rng.choice((b"", journal.MAGIC))
    found = journal.read(bytes(data))
    assert found.tables["job"]["processes"].tolist() == list(range(count))


@pytest.mark.parametrize("gap", [1, 4, 16])
def test_a_file_that_claims_a_large_frame_everywhere_is_given_up_in_seconds(gap: int) -> None:
    claim = struct.pack("<4sBBHI", journal.MAGIC, 1, 3, 1, 1 << 20).ljust(12 + gap, b"\xf5")
    data = header() + frame(3, 1, job_row(1)) + claim * (8 << 20 >> 4)
    begin = time.process_time()
    found = journal.read(data)
    assert time.process_time() - begin < 5
    assert len(found.tables["job"]) == 1
    assert "too much damage: the rest was not read" in (found.damage or "")


def test_a_frame_that_claims_more_than_a_writer_writes_is_not_waited_for() -> None:
    claim = struct.pack("<4sBBHI", journal.MAGIC, 1, 3, 1, 0xFFFF_FFF0) + b"\0" * 4
    found = journal.read(header() + claim + frame(3, 1, job_row(1)))
    assert len(found.tables["job"]) == 1
    assert found.damage == f"16 bytes skipped, the first at offset {len(header())}"


def test_a_journal_longer_than_the_limit_is_read_up_to_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(journal_reader, "MAX_JOURNAL_BYTES", 1000)
    data = header() + frame(3, 1, job_row(1)) * 100
    found = journal.read(data)
    assert 20 < len(found.tables["job"]) < 25
    assert "longer than 1000 bytes: the rest was not read" in (found.damage or "")


@pytest.mark.parametrize("seed", range(30))
def test_random_damage_never_raises_and_never_invents(seed: int, tmp_path: Path) -> None:
    rng = random.Random(seed)
    data = bytearray(journals.write(tmp_path / "j", rows=200))
    for _ in range(rng.randrange(1, 30)):
        at, size = rng.randrange(len(data)), rng.randrange(1, 40)
        kind = rng.randrange(3)
        if kind == 0:
            data[at : at + size] = rng.randbytes(size)
        elif kind == 1:
            del data[at : at + size]
        else:
            data[at:at] = data[rng.randrange(len(data)) :][:size]
    try:
        found = journal.read(bytes(data))
    except TraceError:
        return
    rows = found.tables["job"]
    assert set(rows["processes"].tolist()) <= set(range(200))
    assert (rows["cpu_ns"] == rows["processes"]).all()
