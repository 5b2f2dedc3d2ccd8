"""What a merge costs as jobs grow: nobody but who merges looks at all nodes, and that one once."""

import os
import sys
from pathlib import Path

import numpy as np
import pytest

from fabricctl import layout
from fabricctl.store import collect, dtypes, part, schema
from fabricctl.store.attempts import Part, distribute
from fabricctl.store.journal_reader import Journal

S = 10**9
T0 = 1_790_000_000 * S
NODES = [f"n{nth}" for nth in range(30)]


@pytest.fixture
def user_dir(tmp_path: Path) -> Path:
    tmp_path.chmod(0o1777)
    return collect.ensure_user_dir(tmp_path, "alice", os.geteuid())


def put(user_dir: Path, node: str, begin_s: int = 0) -> None:
    rows = dtypes.empty(schema.JOB, 5)
    rows["time_mono_ns"] = np.arange(5) * S
    tables = {table.name: dtypes.empty(table) for table in schema.TABLES} | {"job": rows}
    begin = T0 + begin_s * S
    given = {"job": 7, "node": node, "nodes": "n[0-29]", "begin_real_ns": begin,
             "end_real_ns": begin + 60 * S}  # fmt: skip
    path = layout.part_file(user_dir, 7, node, begin)
    part.write_part([Journal({"boot_id": "b"}, 1, tables, None)], given, path)


def merge(user_dir: Path, complete_only: bool) -> Path | None:
    return collect.merge(user_dir, 7, NODES, T0, complete_only)


def test_who_has_nothing_to_merge_looks_at_no_other_node(
    user_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for node in NODES:
        put(user_dir, node)
    path = merge(user_dir, complete_only=True)
    assert path is not None

    def refuse(*_: object) -> None:
        raise AssertionError("a node was looked at")

    monkeypatch.setattr("fabricctl.store.trace._node", refuse)
    assert merge(user_dir, complete_only=False) == path
    put(user_dir, "n1", 181)  # requeued, and the others are still to come
    assert merge(user_dir, complete_only=True) is None


def test_parts_are_not_compared_with_each_other(
    user_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compared = 0

    def equal(one: Part, other: object) -> bool:
        nonlocal compared
        compared += 1
        return isinstance(other, Part) and one.path == other.path

    monkeypatch.setattr(Part, "__eq__", equal)
    for node in NODES:
        put(user_dir, node)
    assert merge(user_dir, complete_only=True) is not None
    assert compared <= 2 * len(NODES)


def test_finding_the_attempt_of_a_part_takes_as_long_in_any_job(tmp_path: Path) -> None:
    def work(nodes: int) -> int:
        calls = 0

        def count(*_: object) -> None:
            nonlocal calls
            calls += 1

        parts = [Part(tmp_path / f"n{nth}", f"n{nth}", T0, T0 + 60 * S) for nth in range(nodes)]
        sys.setprofile(count)
        try:
            found = distribute(parts, [], tmp_path, 7)
        finally:
            sys.setprofile(None)
        assert [len(of) for _, of in found] == [nodes]
        return calls

    assert work(800) < 9 * work(100)
