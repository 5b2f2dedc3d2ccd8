"""The inventory in a PostgreSQL of its own: the same answers as from SQLite."""

import os
import pwd
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from fabricctl.errors import ConfigError, SystemRefusedError
from fabricctl.fleet.inventory.store import Inventory

BIN = sorted(Path("/usr/lib/postgresql").glob("*/bin"))


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    """A server in a folder of its own, reached by a socket there."""
    pytest.importorskip("psycopg", reason="pip install psycopg[binary]")
    if not BIN or not (BIN[-1] / "initdb").exists():
        pytest.skip("apt-get install postgresql")
    # Sockets have short names, and the server will not run as root.
    with tempfile.TemporaryDirectory(prefix="pg") as folder:
        owner = pwd.getpwnam("postgres")
        Path(folder).chmod(0o755)
        data = Path(folder) / "d"
        data.mkdir(mode=0o700)
        for path in (Path(folder), data):
            os.chown(path, owner.pw_uid, owner.pw_gid)

        def as_owner(*argv: str) -> list[str]:
            return ["setpriv", "--reuid=postgres", "--regid=postgres", "--clear-groups", *argv]

        subprocess.run(as_owner(str(BIN[-1] / "initdb"), "-D", str(data), "-A", "trust", "-N",
                                "--no-instructions", "-U", "fleet"),
                       check=True, capture_output=True, cwd="/")  # fmt: skip
        server = subprocess.Popen(
            as_owner(str(BIN[-1] / "postgres"), "-D", str(data), "-k", folder, "-h", "", "-F"),
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd="/",
        )  # fmt: skip
        found = f"postgresql://fleet@/postgres?host={folder}"
        try:
            deadline = time.monotonic() + 60
            while True:
                try:
                    Inventory(found).__exit__(None, None, None)
                    break
                except SystemRefusedError:
                    assert time.monotonic() < deadline and server.poll() is None
                    time.sleep(0.05)
            yield found
        finally:
            server.terminate()
            server.wait(30)


def test_it_answers_as_sqlite_does(url: str, tmp_path: Path) -> None:
    said = []
    for where in (tmp_path / "i.db", url):
        with Inventory(where) as inventory:
            inventory.record("n1", {"bios.version": "1", "gpu.count": "8"}, 100)
            inventory.record("n1", {"bios.version": "1", "gpu.count": "8"}, 200)
            assert inventory.record("n1", {"bios.version": "2; DROP TABLE seen '?%s"}, 300) == 2
            inventory.record("n2", {"bios.version": "1"}, 300)
            assert inventory.declare("n1", {"gpu.count": "8", "bios.version": "2"}, "test") == 2
            assert inventory.declare("n1", {"gpu.count": "8"}, "test") == 0
            inventory.undeclare(["n9"])
            said.append((inventory.history("n1"), inventory.history("n1", "gpu.count"),
                         inventory.now(), inventory.visits(), inventory.declared()))  # fmt: skip
            inventory.forget(["n2"])
            assert set(inventory.visits()) == {"n1"}
    assert said[0] == said[1]
    with Inventory(url) as again:  # a second open finds all
        assert set(again.now()) == {"n1"}


def test_what_breaks_in_the_middle_is_undone_and_two_write_at_once(url: str) -> None:
    with Inventory(url) as first, Inventory(url) as second:
        with pytest.raises(SystemRefusedError):
            first.record("n5", {"a.b": "1", "a.c": "a\x00b"})  # PostgreSQL takes no NUL
        assert "n5" not in first.now()
        for number in range(20):
            (first, second)[number % 2].record(f"m{number}", {"a.b": str(number)})
        assert len([name for name in first.now() if name.startswith("m")]) == 20


def test_a_server_that_is_away_and_a_password_in_the_url_are_said() -> None:
    pytest.importorskip("psycopg", reason="pip install psycopg[binary]")
    with pytest.raises(SystemRefusedError, match=r"inventory postgresql://127\.0\.0\.1/db: "):
        Inventory("postgresql://fleet@127.0.0.1:1/db")
    with pytest.raises(ConfigError, match="pgpass") as caught:
        Inventory("postgresql://fleet:secret@localhost/db")
    assert "secret" not in str(caught.value)
