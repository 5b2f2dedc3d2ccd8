"""docs/data-format.md says what the code does, and its snippets run."""

import re
import runpy
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import h5py
import numpy as np
import pytest

from fabricctl.errors import UsageError
from fabricctl.store import document, journal, part, schema
from fabricctl.store.journal import JournalWriter
from fabricctl.store.schema import NOT_MEASURED
from tests.support import journals

DOCUMENT = Path(__file__).parents[2] / "docs" / "data-format.md"
TEXT = DOCUMENT.read_text()


def check(path: Path, *more: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "fabricctl.store.document", *more, str(path)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_the_document_is_what_the_schema_generates() -> None:
    assert document.rendered(TEXT) == TEXT, "run: python -m fabricctl.store.document"


def test_a_document_that_differs_is_told_and_made_anew(tmp_path: Path) -> None:
    path = tmp_path / "d.md"
    path.write_text(TEXT.replace("Bytes received.", "Octets received."))
    answer = check(path, "--check")
    message = f"{path}: differs from the schema: run fabricctl.store.document\n"
    assert (answer.returncode, answer.stdout, answer.stderr) == (1, "", message)
    assert check(path).returncode == 0
    assert path.read_text() == TEXT


def test_a_document_that_lost_a_part_is_not_written(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="part 'frame' must be there once"):
        document.rendered(TEXT.replace("<!-- end frame -->", ""))


def test_every_table_and_attribute_is_in_the_document_by_name() -> None:
    for table in schema.TABLES:
        section = TEXT.split(f"### `{table.name}`\n")[1].split("### ")[0]
        assert [column.name for column in table.columns] == re.findall(
            r"^\| `(\w+)` \|", section, re.MULTILINE
        )


@pytest.fixture
def trace(tmp_path: Path) -> Path:
    """A part, which is laid out like a trace, with a step of the realtime clock in it."""
    writer = JournalWriter(tmp_path / "j", journals.HEADER)
    for second in range(60):
        mono = second * 10**9
        real = 1_790_000_000 * 10**9 + mono + (5 * 10**9 if second >= 30 else 0)
        for rail in range(2):
            writer.append(schema.RAIL, mono, rail, 1, 0, *[second * 1000] * 8)
        if second % 10 == 0:
            writer.append(schema.CLOCK, mono, real, mono, mono, 60)
    writer.append(schema.LINK_EVENT, 0, 0, 0, 0, 1)
    writer.close()
    given = {"job": 7, "node": "n1"}
    part.write_part([journal.read(tmp_path / "j")], given, tmp_path / "job-7.h5")
    return tmp_path / "job-7.h5"


def test_the_snippets_run_as_they_stand(
    trace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    snippets = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)
    assert len(snippets) == 4
    *snippets, rollup = snippets
    assert len(rollup.splitlines()) == 3, "three lines were promised"
    assert len(snippets[0].splitlines()) == 3, "three lines were promised"
    (tmp_path / "snippets.py").write_text("".join(snippets))
    monkeypatch.chdir(tmp_path)
    found = runpy.run_path("snippets.py")
    rail, columns = found["rail"], found["columns"]
    assert rail["rx_bytes"].tolist() == [second * 1000 for second in range(60) for _ in range(2)]
    assert columns.loc["rx_bytes"].tolist() == ["B", "", "Bytes received.", ""]
    assert columns.loc["time_mono_ns", "clock"] == "CLOCK_MONOTONIC"
    first, last = rail["time"].iloc[0], rail["time"].iloc[-1]
    assert str(first) == "2026-09-21 14:13:20+00:00"
    assert (last - first).total_seconds() == 59 + 5


def test_the_file_is_laid_out_as_drawn(trace: Path) -> None:
    with h5py.File(trace) as file:
        names: list[str] = []
        file.visit(names.append)
        for name in names:
            first, *rest = name.split("/")
            if first == "schema" and rest:
                assert isinstance(file[name], h5py.Datatype)
                assert set(file[name].attrs) == {"about", "unit", "clock", "doc", "values"}
            elif len(rest) == 2:
                assert isinstance(file[name], h5py.Dataset)
                assert file[name].ndim == 1
                assert file[name].dtype == file[f"schema/{rest[1]}"].dtype
                chain = (file[name].compression, file[name].shuffle, file[name].fletcher32)
                assert chain == ("gzip", True, True)
                times = file[name]["time_mono_ns"]
                assert (np.diff(times) >= 0).all()
            else:
                assert isinstance(file[name], h5py.Group)
        tables = {name.split("/")[2] for name in names if name.count("/") == 2}
        assert tables == {"rail", "clock", "link_event", "life"}
        values = file["schema/link_event"].attrs["values"][3]
        assert values == b"0=CARRIER_DOWN 1=CARRIER_UP 2=ADMIN_DOWN 3=ADMIN_UP 4=REMOVED 5=ADDED"


def test_attributes_have_the_documented_types(trace: Path) -> None:
    known = {
        "/": (*schema.JOB_ATTRIBUTES, *schema.TRACE_ATTRIBUTES),
        "nodes/n1": schema.NODE_ATTRIBUTES,
    }
    kinds = {"text": "S", "int": "i", "float": "f"}
    with h5py.File(trace) as file:
        for path, attributes in known.items():
            by_name = {attribute.name: attribute for attribute in attributes}
            assert set(file[path].attrs) <= set(by_name)
            for name in file[path].attrs:
                found = file[path].attrs.get_id(name)
                assert found.dtype.kind == kinds[by_name[name].kind]
                assert found.shape == ()


def test_a_journal_can_be_read_by_the_documents_words_alone(tmp_path: Path) -> None:
    """An independent reader: magic, versions, lengths and checksum as the drawing has them."""
    data, at, frames = journals.write(tmp_path / "j", rows=12), 0, []
    while at < len(data):
        magic, version, table, rows, length = struct.unpack_from("<4sBBHI", data, at)
        (crc,) = struct.unpack_from("<I", data, at + 12)
        payload = data[at + 16 : at + 16 + length]
        assert (magic.hex(" "), version) == ("f5 66 6a 1a", 1)
        assert crc == zlib.crc32(data[at : at + 12] + payload)
        frames.append((table, rows, payload))
        at += 16 + length
    table, rows, payload = frames[0]
    lines = payload.decode().split("\n")
    assert (table, lines[0], "node=n1" in lines) == (0, "schema_version=1", True)
    assert [rows for _, rows, _ in frames[1:]] == [5, 5, 2]
    assert all(len(payload) == rows * 28 for _, rows, payload in frames[1:])


def test_not_measured_is_the_largest_value_of_the_type() -> None:
    for code, value in NOT_MEASURED.items():
        assert value == 2 ** (8 * struct.calcsize(code)) - 1
    assert str(NOT_MEASURED["Q"]) in TEXT


# Tables as version 1 has them. Tables may be added, and columns at the end; see Versions.
PUBLISHED = {
    1: (
        "rail",
        "time_mono_ns:q:ns rail:B:1 carrier:B:1 carrier_changes:I:1 rx_bytes:Q:B "
        "tx_bytes:Q:B rx_packets:Q:1 tx_packets:Q:1 rx_errors:Q:1 tx_errors:Q:1 "
        "rx_dropped:Q:1 tx_dropped:Q:1",
    ),
    2: (
        "host",
        "time_mono_ns:q:ns cpu_user_ns:Q:ns cpu_nice_ns:Q:ns cpu_system_ns:Q:ns "
        "cpu_idle_ns:Q:ns cpu_iowait_ns:Q:ns cpu_irq_ns:Q:ns cpu_softirq_ns:Q:ns "
        "cpu_steal_ns:Q:ns memory_total_bytes:Q:B memory_available_bytes:Q:B "
        "psi_cpu_some_us:Q:us psi_memory_some_us:Q:us psi_memory_full_us:Q:us "
        "psi_io_some_us:Q:us psi_io_full_us:Q:us",
    ),
    3: ("job", "time_mono_ns:q:ns cpu_ns:Q:ns memory_bytes:Q:B processes:I:1"),
    4: ("link_event", "time_mono_ns:q:ns time_real_ns:q:ns rail:B:1 event:B:1 carrier_changes:I:1"),
    5: ("note", "time_mono_ns:q:ns time_real_ns:q:ns severity:B:1 source:24s:1 text:232s:1"),
    6: (
        "clock",
        "time_mono_ns:q:ns time_real_ns:q:ns time_raw_ns:q:ns time_boot_ns:q:ns width_ns:I:ns",
    ),
    7: ("step", "time_mono_ns:q:ns time_real_ns:q:ns step:24s:1 event:B:1"),
    8: ("life", "time_mono_ns:q:ns end_mono_ns:q:ns rows:Q:1 damage:232s:1"),
}


def test_what_was_published_keeps_number_name_type_and_unit() -> None:
    for number, (name, published) in PUBLISHED.items():
        table = schema.BY_NUMBER[number]
        columns = [f"{column.name}:{column.code}:{column.unit}" for column in table.columns]
        words = published.split()
        assert (table.name, columns[: len(words)]) == (name, words)
        for column in table.columns[len(words) :]:
            assert column.code in NOT_MEASURED or column.code.endswith("s")


def test_numbers_and_names_are_used_once_and_no_number_is_the_headers() -> None:
    assert len(schema.BY_NUMBER) == len(schema.BY_NAME) == len(schema.TABLES)
    assert journal.HEADER_TABLE not in schema.BY_NUMBER
    assert max(schema.BY_NUMBER) < 256
