import os
import re
from pathlib import Path

import pytest

from fabricctl import config
from fabricctl.cli.config import sample
from fabricctl.errors import ConfigError

ROOT = Path(__file__).parents[2]
NO_ENVIRONMENT: dict[str, str] = {}


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "fabricctl.toml"
    path.write_text(text)
    return path


def test_without_a_file_defaults_are_in_force(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(config, "DEFAULT_FILE", Path("/nonexistent/fabricctl.toml"))
    loaded = config.load(environ=NO_ENVIRONMENT)
    assert loaded == config.Config()
    assert loaded.source is None


def test_a_file_that_was_named_must_exist(tmp_path: Path) -> None:
    for path, environ in (
        (tmp_path / "absent", NO_ENVIRONMENT),
        (None, {"FABRICCTL_CONFIG": str(tmp_path / "absent")}),
    ):
        with pytest.raises(ConfigError, match=r"absent: no such configuration file$"):
            config.load(path, environ)


def test_the_file_beats_the_default_and_the_environment_the_file(tmp_path: Path) -> None:
    path = write(tmp_path, "[agent]\nsample_hz = 5\nport_count = 100\n[trace]\nkeep_parts = true\n")
    loaded = config.load(path, {"FABRICCTL_AGENT_SAMPLE_HZ": "50"})
    assert loaded.agent.sample_hz == 50.0
    assert loaded.agent.port_count == 100
    assert loaded.trace.keep_parts is True
    assert loaded.agent.port_first == config.AgentConfig().port_first
    assert loaded.origins == {
        "agent.sample_hz": "environment FABRICCTL_AGENT_SAMPLE_HZ",
        "agent.port_count": str(path),
        "trace.keep_parts": str(path),
    }


def test_every_kind_of_value_can_come_from_the_environment(tmp_path: Path) -> None:
    environ = {
        "FABRICCTL_NODE_RUN_DIR": "/run/x",
        "FABRICCTL_AGENT_PORT_COUNT": "8",
        "FABRICCTL_RAILS_INTERFACES": "ib*,hsn0",
        "FABRICCTL_TRACE_KEEP_PARTS": "true",
    }
    loaded = config.load(write(tmp_path, ""), environ)
    assert loaded.node.run_dir == Path("/run/x")
    assert loaded.agent.port_count == 8
    assert loaded.rails.interfaces == ("ib*", "hsn0")
    assert loaded.trace.keep_parts is True
    assert (
        config.load(
            write(tmp_path, "[rails]\ninterfaces = ['a']"), {"FABRICCTL_RAILS_INTERFACES": ""}
        ).rails.interfaces
        == ()
    )


PARTITIONS = """
[agent]
sample_hz = 2
[partition.gpu]
agent.sample_hz = 20
rails.interfaces = ["ib*"]
[partition.debug.agent]
max_mode = "observe"
"""


def test_a_partition_has_its_own_values_over_the_general_ones(tmp_path: Path) -> None:
    loaded = config.load(write(tmp_path, PARTITIONS), NO_ENVIRONMENT)
    gpu, debug = loaded.for_partition("gpu"), loaded.for_partition("debug")
    assert (gpu.agent.sample_hz, gpu.agent.max_mode) == (20.0, "on")
    assert gpu.rails.interfaces == ("ib*",)
    assert (debug.agent.sample_hz, debug.agent.max_mode) == (2.0, "observe")
    assert loaded.for_partition("main") == loaded
    assert loaded.agent.sample_hz == 2.0
    assert gpu.origins["agent.sample_hz"] == f"{loaded.source} [partition.gpu]"


def test_the_environment_beats_a_partitions_value(tmp_path: Path) -> None:
    environ = {"FABRICCTL_AGENT_SAMPLE_HZ": "50"}
    gpu = config.load(write(tmp_path, PARTITIONS), environ).for_partition("gpu")
    assert gpu.agent.sample_hz == 50.0
    assert gpu.rails.interfaces == ("ib*",)


SECTIONS = ", ".join(config.SECTIONS)
DIFFER = ", ".join(key for key, metadata in config.every_key() if metadata["per_partition"])
WRONG = {
    "[agnet]": "{file}: unknown section [agnet]; did you mean 'agent'?",
    "[zzz]": ("{file}: unknown section [zzz]; known are: {sections}, partition"),
    "agent = 3": "{file}: [agent] must be a section, not a value",
    "[agent]\nsample_rate = 1": (
        "{file}: unknown key agent.sample_rate; did you mean 'sample_hz'?"
    ),
    "[trace]\nzzz = 1": (
        "{file}: unknown key trace.zzz; known are: dir, collect_wait_s, keep_parts"
    ),
    "[agent]\nsample_hz = 101": "{file}: agent.sample_hz: 101.0 is outside 0.1 to 100",
    "[agent]\nsample_hz = 0": "{file}: agent.sample_hz: 0.0 is outside 0.1 to 100",
    "[agent]\nsample_hz = nan": "{file}: agent.sample_hz: nan is outside 0.1 to 100",
    "[agent]\nsample_hz = '10'": "{file}: agent.sample_hz: '10' is not a number",
    "[agent]\nsample_hz = true": "{file}: agent.sample_hz: True is not a number",
    "[agent]\nport_first = 20100.5": "{file}: agent.port_first: 20100.5 is not a whole number",
    "[agent]\nport_first = 80": "{file}: agent.port_first: 80 is outside 1024 to 65000",
    "[agent]\nport_first = 65000\nport_count = 1000": (
        "{file}: agent.port_count: the last port would be 65999, above 65535"
    ),
    "[agent]\nuser = 7": "{file}: agent.user: 7 is not a text",
    "[agent]\nuser = 'root'": "{file}: agent.user: 'root' is not a user without privileges",
    "[agent]\nuser = 'a b'": "{file}: agent.user: 'a b' is not a user without privileges",
    "[agent]\nmax_mode = 'no'": "{file}: agent.max_mode: 'no' is not one of off, observe, on",
    "[node]\nrun_dir = 'run'": "{file}: node.run_dir: 'run' is not an absolute path",
    "[node]\nrun_dir = 3": "{file}: node.run_dir: 3 is not a path",
    "[node]\nrun_dir = '/x'\nspool_dir = '/x'": (
        "{file}: node.spool_dir: must differ from node.run_dir, which a boot empties"
    ),
    "[node]\nrun_dir = '/var/spool/fabricctl'": (
        "{file}: node.spool_dir: must differ from node.run_dir, which a boot empties"
    ),
    "[rails]\ninterfaces = 'ib0'": "{file}: rails.interfaces: 'ib0' is not a list of texts",
    "[rails]\ninterfaces = ['ib0', 1]": (
        "{file}: rails.interfaces: ['ib0', 1] is not a list of texts"
    ),
    "[rails]\ninterfaces = ['']": (
        "{file}: rails.interfaces: '' is not an interface's name or glob"
    ),
    "[trace]\nkeep_parts = 'yes'": "{file}: trace.keep_parts: 'yes' is not true or false",
    "[trace]\nkeep_parts = 1": "{file}: trace.keep_parts: 1 is not true or false",
    "[partition]\ngpu = 3": "{file}: partition.gpu must be a section [partition.gpu]",
    "[partition.gpu]\nsample_hz = 3": (
        "{file}: [partition.gpu]: unknown key 'sample_hz'; did you mean 'agent.sample_hz'?"
    ),
    "[partition.gpu]\nzzz = 3": ("{file}: [partition.gpu]: unknown key 'zzz'; known are: {differ}"),
    "[partition.gpu.agent]\nsampel_hz = 3": (
        "{file}: [partition.gpu]: unknown key agent.sampel_hz; did you mean 'sample_hz'?"
    ),
    "[partition.gpu]\nagent.sample_hz = 1000": (
        "{file}: [partition.gpu]: agent.sample_hz: 1000.0 is outside 0.1 to 100"
    ),
    "[partition.gpu]\ntrace.keep_parts = true": (
        "{file}: [partition.gpu]: trace.keep_parts is the same for every partition; "
        "those that can differ: {differ}"
    ),
    "[partition.gpu]\nrails.interfaces = ['a/b']": (
        "{file} [partition.gpu]: rails.interfaces: 'a/b' is not an interface's name or glob"
    ),
    "[partition.'a,b']\nagent.sample_hz = 1": (
        "{file}: [partition.a,b]: 'a,b' is not a name of a partition"
    ),
    "[agent]\n[agent]": (
        "{file}: not valid TOML: Cannot declare ('agent',) twice (at line 2, column 7)"
    ),
    "[agent]\nuser = fabric": "{file}: not valid TOML: Invalid value (at line 2, column 8)",
}


@pytest.mark.parametrize("text", WRONG, ids=lambda text: re.sub(r"\s+", " ", text))
def test_a_wrong_file_is_refused_with_this_very_message(text: str, tmp_path: Path) -> None:
    file = write(tmp_path, text)
    with pytest.raises(ConfigError) as caught:
        config.load(file, NO_ENVIRONMENT)
    assert str(caught.value) == WRONG[text].format(file=file, sections=SECTIONS, differ=DIFFER)
    assert caught.value.exit_status == 78


WRONG_ENVIRONMENT = {
    "FABRICCTL_AGENT_SAMPLE_HZ=fast": (
        "environment FABRICCTL_AGENT_SAMPLE_HZ: agent.sample_hz: 'fast' is not a number"
    ),
    "FABRICCTL_AGENT_SAMPLEHZ=1": (
        "environment: unknown FABRICCTL_AGENT_SAMPLEHZ; did you mean 'FABRICCTL_AGENT_SAMPLE_HZ'?"
    ),
    "FABRICCTL_TRACE_KEEP_PARTS=yes": (
        "environment FABRICCTL_TRACE_KEEP_PARTS: trace.keep_parts: 'yes' is not true or false"
    ),
    "FABRICCTL_NODE_RUN_DIR=": (
        "environment FABRICCTL_NODE_RUN_DIR: node.run_dir: '' is not an absolute path"
    ),
    "FABRICCTL_AGENT_USER=root": (
        "environment FABRICCTL_AGENT_USER: agent.user: 'root' is not a user without privileges"
    ),
}


@pytest.mark.parametrize("setting", WRONG_ENVIRONMENT)
def test_a_wrong_variable_is_refused_with_this_very_message(setting: str, tmp_path: Path) -> None:
    variable, _, value = setting.partition("=")
    with pytest.raises(ConfigError) as caught:
        config.load(write(tmp_path, ""), {variable: value})
    assert str(caught.value) == WRONG_ENVIRONMENT[setting]


def test_a_file_that_is_not_text_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "fabricctl.toml"
    path.write_bytes(b"[agent]\nuser = '\xff'\n")
    with pytest.raises(ConfigError) as caught:
        config.load(path, NO_ENVIRONMENT)
    assert str(caught.value) == f"{path}: not valid TOML: the file is not UTF-8 text"


def test_a_directory_in_the_files_place_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        config.load(tmp_path, NO_ENVIRONMENT)
    assert str(caught.value) == f"{tmp_path}: cannot be read: {os.strerror(21)}"


def test_the_sample_file_is_what_the_code_prints() -> None:
    assert (ROOT / "site-config" / "fabricctl.toml").read_text() == sample()


def test_the_sample_file_uncommented_loads_and_changes_nothing(tmp_path: Path) -> None:
    text = re.sub(r"^#(?=\[|[a-z0-9_.]+ = )", "", sample(), flags=re.MULTILINE)
    loaded = config.load(write(tmp_path, text), NO_ENVIRONMENT)
    assert set(loaded.origins) == {key for key, _ in config.every_key()}
    for key, _ in config.every_key():
        assert loaded.value(key) == config.Config().value(key)
    assert set(loaded.partitions) == {"gpu"}


@pytest.mark.parametrize(("key", "metadata"), list(config.every_key()))
def test_every_key_is_explained(key: str, metadata: dict[str, str]) -> None:
    assert metadata["doc"].endswith("."), key
    assert key in (ROOT / "docs" / "configuration.md").read_text()
