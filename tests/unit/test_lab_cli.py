"""The words of `fabricctl lab`, as far as they need no lab."""

import pytest
from click.testing import CliRunner

from fabricctl.cli.lab import command
from fabricctl.errors import FabricError
from fabricctl.lab.kinds import KINDS


def said(*words: str) -> str:
    return CliRunner().invoke(command, list(words), catch_exceptions=False).output


@pytest.mark.parametrize("kind", list(KINDS))
def test_every_fault_explains_its_options(kind: str) -> None:
    text = said("fault", kind, "--help")
    assert KINDS[kind].doc.split()[0] in text
    for option in KINDS[kind].options:
        assert f"--{option}" in text
    assert "--for" in text
    assert "--for" not in said("heal", kind, "--help")


def test_the_list_has_every_fault_and_option() -> None:
    text = said("fault", "--list")
    for kind, item in KINDS.items():
        assert f"\n{kind} " in "\n" + text or f"\n{kind}\n" in text
        assert all(f"--{option}" in text for option in item.options)


def test_an_unknown_fault_names_those_there_are() -> None:
    with pytest.raises(FabricError, match="no fault 'cutt'; known are: cut, blackhole"):
        said("fault", "cutt", "n1", "r0")


@pytest.mark.parametrize("words", [("fault",), ("heal",)])
def test_without_a_kind_the_help_is_shown_as_an_error(words: tuple[str, ...]) -> None:
    assert CliRunner().invoke(command, list(words)).exit_code == 2


def test_a_conf_line_that_is_none_is_refused() -> None:
    result = CliRunner().invoke(command, ["up", "--conf", "KillWait"])
    assert result.exit_code == 2
    assert "'KillWait' is not KEY=VALUE" in result.output


def test_every_word_on_a_lab_that_is_not_there_says_how_to_make_it() -> None:
    for words in (["status"], ["log"], ["heal", "--all"], ["exec", "n1", "true"]):
        with pytest.raises(FabricError, match=r"lab nowhere is not up \(fabricctl lab up --name"):
            said(*words[:1], "--name", "nowhere", *words[1:])
