"""The reader: whatever a file holds, it gives rows or one clear error."""

import errno
import os
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest

from fabricctl.errors import TraceError
from fabricctl.store import checked, journal, part, schema
from fabricctl.store import trace as trace_module
from fabricctl.store.checked import DamagedTraceError, NewerTraceError
from fabricctl.store.trace import open_trace, text
from tests.support import journals

GIVEN = {"job": 7, "node": "n1", "nodes": "n[1-3]", "begin_real_ns": 10**18}


@pytest.fixture
def good(tmp_path: Path) -> Path:
    journals.write(tmp_path / "j", rows=500)
    part.write_part([journal.read(tmp_path / "j")], GIVEN, tmp_path / "good.h5")
    return tmp_path / "good.h5"


def read_all(path: Path) -> None:
    with open_trace(path) as trace:
        for node in trace.nodes:
            for table in schema.TABLES:
                trace.table(node, table)


def refusal(path: Path) -> str:
    """What is said about a file that cannot be read; the path replaced by ``*``."""
    begin = time.process_time()
    with pytest.raises(TraceError) as caught:
        read_all(path)
    assert time.process_time() - begin < 2
    return str(caught.value).replace(str(path), "*")


def test_a_good_trace_is_read_and_closed(good: Path) -> None:
    with open_trace(good) as trace:
        assert trace.schema_version == schema.SCHEMA_VERSION
        assert trace.table("n1", schema.JOB)["processes"].tolist() == list(range(500))
        assert len(trace.table("n1", schema.NOTE)) == 0
        assert trace.table("n1", schema.NOTE).dtype.names is not None
    assert not trace.file


# As HDF5 2.0 has it of a read(2) that failed.
REFUSED = (
    "Unable to synchronously open object (file read failed: time = Sun Nov 22 21:56:10 2026\n, "
    "filename = 'job-7.h5', file descriptor = 3, errno = {}, error message = 'Input/output error', "
    "buf = 0x1f5ffce0, total read size = 512, bytes this sub-read = 512, offset = 372)"
)


def test_a_file_system_that_does_not_answer_is_no_damage(
    good: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A merge sets aside what is damaged: it would do so with every trace and part of the job."""

    def refused(*_: object) -> None:
        raise KeyError(REFUSED.format(errno.EIO))

    monkeypatch.setattr(trace_module, "_node", refused)
    with pytest.raises(TraceError, match="cannot be read: Input/output error") as caught:
        open_trace(good)
    assert not isinstance(caught.value, DamagedTraceError)
    with open_trace(good, partial=True) as trace:
        assert [one.why for one in trace.damage] == ["cannot be read: Input/output error"]


def test_a_trace_is_read_while_somebody_else_has_it_open(good: Path) -> None:
    with h5py.File(good, "r"):
        read_all(good)


@pytest.mark.parametrize("kind", ["missing", "directory", "fifo", "empty", "text", "journal"])
def test_what_is_no_trace_is_refused_at_once(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "t.h5"
    if kind == "directory":
        path.mkdir()
    elif kind == "fifo":
        os.mkfifo(path)
    elif kind == "empty":
        path.touch()
    elif kind == "text":
        path.write_text("no trace\n" * 1000)
    elif kind == "journal":
        journals.write(path, rows=5)
    said = refusal(path)
    expected = {
        "missing": "cannot be opened: No such file or directory",
        "directory": "not a regular file",
        "fifo": "not a regular file",
    }.get(kind, "no HDF5 file, or damaged: Unable to synchronously open file (")
    assert said.startswith(f"trace *: {expected}")


def test_a_file_that_may_not_be_read_is_not_called_damaged(good: Path) -> None:
    if os.geteuid() == 0:
        pytest.skip("root may read everything")
    good.chmod(0)
    with pytest.raises(TraceError) as caught:
        open_trace(good)
    assert not isinstance(caught.value, DamagedTraceError)


def test_a_link_to_a_trace_is_a_trace(good: Path, tmp_path: Path) -> None:
    (tmp_path / "link.h5").symlink_to(good)
    read_all(tmp_path / "link.h5")


@pytest.mark.parametrize("percent", [1, 10, 30, 50, 70, 90, 99])
def test_a_trace_cut_short_is_refused(percent: int, good: Path) -> None:
    data = good.read_bytes()
    there = len(data) * percent // 100
    good.write_bytes(data[:there])
    words = f"cut off, {there} of {len(data)} bytes are there" if there >= 48 else "damaged"
    assert words in refusal(good)


def test_a_newer_schema_is_told_from_damage_and_names_both_versions(good: Path) -> None:
    with h5py.File(good, "r+") as file:
        file.attrs["schema_version"] = 99
    with pytest.raises(NewerTraceError, match="schema version 99, this fabricctl reads up to 1"):
        open_trace(good)


# --- forged files: what is done to a good one, and what is said then --------------------------

Forgery = Callable[[h5py.File], None]


def replaced(name: str, **how: object) -> Forgery:
    def forge(file: h5py.File) -> None:
        del file[name]
        file.create_dataset(name, **how)

    return forge


def linked(name: str, target: object) -> Forgery:
    def forge(file: h5py.File) -> None:
        if name in file:
            del file[name]
        file[name] = target(file) if callable(target) else target

    return forge


def attribute(name: str, value: object) -> Forgery:
    def forge(file: h5py.File) -> None:
        if value is None:
            del file.attrs[name]
        else:
            file.attrs[name] = np.bytes_(value) if isinstance(value, str) else value

    return forge


def external_data(file: h5py.File) -> None:
    del file["nodes/n1/job"]
    kind = np.dtype([("time_mono_ns", "<i8")])
    file.create_dataset(
        "nodes/n1/job", (100,), kind, external=[("/etc/passwd", 0, h5py.h5f.UNLIMITED)]
    )


def virtual_data(file: h5py.File) -> None:
    del file["nodes/n1/job"]
    layout = h5py.VirtualLayout(shape=(100,), dtype=np.dtype([("time_mono_ns", "<i8")]))
    layout[:] = h5py.VirtualSource("/etc/passwd", "x", shape=(100,), dtype=layout.dtype)
    file.create_virtual_dataset("nodes/n1/job", layout)


def many_nodes(file: h5py.File) -> None:
    for nth in range(200):
        file.create_group(f"nodes/x{nth}")


TIMES = np.dtype([("time_mono_ns", "<i8")])
JOB = "nodes/n1/job"
FORGERIES: dict[str, tuple[Forgery, str]] = {
    "no format": (attribute("format", None), "HDF5, but not a fabricctl trace"),
    "other format": (attribute("format", "netcdf"), "HDF5, but not a fabricctl trace"),
    "format of any length": (
        lambda file: file.attrs.create("format", "fabricctl-trace", dtype=h5py.string_dtype()),
        "HDF5, but not a fabricctl trace",
    ),
    "format as array": (attribute("format", ["fabricctl-trace"] * 2), "not a fabricctl trace"),
    "version as text": (attribute("schema_version", "one"), "schema version 'one' is not a number"),
    "version zero": (attribute("schema_version", 0), "schema version '0' is not a number"),
    "version as array": (attribute("schema_version", [1] * 9), "'None' is not a number"),
    "no job": (attribute("job", None), "attribute job is missing"),
    "job as text": (attribute("job", "seven"), "attribute job is 'seven'"),
    "job not finite": (attribute("job", float("inf")), "attribute job is 'inf'"),
    "times beyond 64 bits": (attribute("end_real_ns", np.uint64(2**64 - 1)), "end_real_ns is '184"),
    "nodes unbalanced": (attribute("nodes", "n[1-"), "brackets do not match"),
    "nodes without end": (attribute("nodes", "n[1-9][1-9][1-9][1-9][1-9][1-9]"), "more than 65536"),
    "nodes as a blob": (attribute("nodes", np.void(b"\0" * 99)), "attribute nodes is missing"),
    "nodes with controls": (attribute("nodes", "n\x1b[31m"), "host list"),
    "nodes too long": (attribute("nodes", "x" * (2 << 20)), "attribute nodes is missing"),
    "node without attributes": (many_nodes, "node x0: attribute node is missing"),
    "node of a strange name": (linked("nodes/a b", lambda f: f["nodes/n1"]), "not a node's name"),
    "node above itself": (linked("nodes/n1/job", lambda f: f["nodes"]), "job is not a dataset"),
    "node is a table": (linked("nodes/n2", lambda f: f[JOB]), "n2 is not a group"),
    "nodes are a table": (linked("nodes", np.zeros(3)), "nodes is not a group"),
    "node elsewhere": (linked("nodes/n2", h5py.SoftLink("/nodes/n1")), "a link to somewhere else"),
    "node in another file": (
        linked("nodes/n2", h5py.ExternalLink("/dev/zero", "/")),
        "n2 is a link to somewhere else",
    ),
    "table in another file": (
        linked(JOB, h5py.ExternalLink("/dev/zero", "/")),
        "job is a link to somewhere else",
    ),
    "external data": (external_data, "its data lies outside the file"),
    "virtual data": (virtual_data, "its data lies outside the file"),
    "no table": (replaced(JOB, data=np.zeros(9), chunks=(9,)), "not a table"),
    "two dimensions": (replaced(JOB, data=np.zeros((9, 9), TIMES), chunks=(9, 9)), "not a table"),
    "one number": (replaced(JOB, data=np.zeros((), TIMES)), "not a table"),
    "columns of text without end": (
        replaced(JOB, shape=(9,), dtype=[("time_mono_ns", h5py.string_dtype())], chunks=(9,)),
        "not a table",
    ),
    "columns of arrays": (
        replaced(JOB, shape=(9,), dtype=[("time_mono_ns", "<i8", (3,))], chunks=(9,)),
        "not a table",
    ),
    "wide rows": (
        replaced(JOB, shape=(1,), dtype=[("time_mono_ns", "S99999")], chunks=(1,)),
        "not a table",
    ),
    "not in chunks": (replaced(JOB, data=np.zeros(9, TIMES)), "stored in a way"),
    "lzf": (replaced(JOB, data=np.zeros(9, TIMES), compression="lzf"), "stored in a way"),
    "unknown filter": (
        replaced(
            JOB, shape=(9,), dtype=TIMES, chunks=(9,), compression=32015, allow_unknown_filter=True
        ),
        "stored in a way",
    ),
    "a chunk too large": (
        replaced(JOB, shape=(1 << 30,), dtype=TIMES, chunks=(1 << 28,)),
        "chunks of 2147483648 bytes",
    ),
    "rows without end": (
        replaced(JOB, shape=(1 << 60,), dtype=TIMES, chunks=(1000,)),
        "bytes declared, 0 stored",
    ),
    "rows that nothing backs": (
        replaced(JOB, shape=(10**8,), dtype=TIMES, chunks=(1000,)),
        "800000000 bytes declared, 0 stored",
    ),
    "text as times": (
        replaced(JOB, data=np.zeros(9, [("time_mono_ns", "S8")]), chunks=(9,)),
        "",
    ),
}


@pytest.mark.parametrize("name", FORGERIES)
def test_a_forged_trace_is_refused_in_one_sentence(name: str, good: Path) -> None:
    forge, message = FORGERIES[name]
    with h5py.File(good, "r+") as file:
        forge(file)
    said = refusal(good)
    assert message in said
    assert said.isprintable()


def test_a_zip_bomb_is_no_larger_in_memory_than_its_file_may_be(
    good: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checked, "MAX_TABLE_BYTES", 1 << 20)
    with h5py.File(good, "r+") as file:
        replaced(JOB, data=np.zeros(10**6, TIMES), chunks=(10**5,), compression="gzip")(file)
    assert "8000000 bytes declared" in refusal(good)


def test_tables_and_attributes_that_this_version_does_not_know_are_no_damage(good: Path) -> None:
    with h5py.File(good, "r+") as file:
        file["nodes/n1/later"] = np.zeros(3)
        file["nodes/n1"].attrs["later"] = [1, 2, 3]
        file["later"] = "x"
    read_all(good)


def test_columns_that_an_older_version_lacked_were_not_measured(good: Path) -> None:
    with h5py.File(good, "r+") as file:
        replaced(JOB, data=np.arange(9).astype(TIMES), chunks=(9,))(file)
    with open_trace(good) as trace:
        rows = trace.table("n1", schema.JOB)
    assert rows["time_mono_ns"].tolist() == list(range(9))
    assert set(rows["processes"].tolist()) == {0xFFFF_FFFF}


def test_text_is_fit_to_be_shown() -> None:
    assert text(b"link \x1b[31mdown\x07 \xff") == "link �[31mdown� �"
    assert text(np.bytes_("größer".encode())) == "größer"


FUZZ = """
import random, sys
from pathlib import Path
import numpy as np
from fabricctl.errors import TraceError
from fabricctl.store import schema
from fabricctl.store.trace import open_trace

def content(path):
    with open_trace(path) as trace:
        return trace.job, dict(trace.nodes), [
            trace.table(node, table).tobytes() for node in trace.nodes for table in schema.TABLES
        ]

good, rng = Path(sys.argv[1]), random.Random(int(sys.argv[2]))
data, wanted = good.read_bytes(), content(good)
bad = good.with_name(f"bad{sys.argv[2]}.h5")
refused = 0
for nth in range(250):
    forged = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 20))):
        at = rng.randrange(len(data))
        if nth % 2:
            forged[at] ^= 1 << rng.randrange(8)
        else:
            forged[at : at + 8] = rng.choice((rng.randbytes(8), b"\\xff" * 8, bytes(8)))
    bad.write_bytes(forged)
    try:
        found = content(bad)
    except TraceError as error:
        assert str(error).isprintable(), error
        refused += 1
    else:
        assert found[2] == wanted[2], "wrong rows"
print(refused)
"""


@pytest.mark.parametrize("seed", range(4))
def test_random_damage_is_found_by_checksums_and_never_crashes(
    seed: int, good: Path, tmp_path: Path
) -> None:
    """Rows that come back are the right ones. In a process of its own, for HDF5 is C."""
    shutil.copy(good, tmp_path / "f.h5")
    command = [sys.executable, "-c", FUZZ, str(tmp_path / "f.h5"), str(seed)]
    answer = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert (answer.returncode, answer.stderr) == (0, "")
    assert 60 < int(answer.stdout) <= 250
    assert random.Random(seed)
