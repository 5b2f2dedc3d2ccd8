"""fabricctl/fields.py on the cases it shares with the plugin, and what only it does."""

import pytest

from fabricctl import fields
from fabricctl.errors import FieldsError
from tests.support.fields_cases import Case, cases


def text_of(raw: bytes) -> str:
    """As readers of files and of the environment in Python see bytes."""
    return raw.decode("utf-8", "surrogateescape")


@pytest.mark.parametrize("case", cases(), ids=lambda case: case.name)
def test_decode_gives_the_fields_or_says_what_is_wrong(case: Case) -> None:
    if case.fields is None:
        with pytest.raises(FieldsError, match=r"^fields: ") as caught:
            fields.decode(text_of(case.raw), case.separator)
        assert case.words in str(caught.value)
    else:
        assert fields.decode(text_of(case.raw), case.separator) == case.fields


@pytest.mark.parametrize("case", [c for c in cases() if c.fields], ids=lambda case: case.name)
def test_encode_is_the_inverse(case: Case) -> None:
    assert case.fields
    text = fields.encode(case.fields, case.separator)
    assert text.encode() == case.raw.removesuffix(case.separator.encode())


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("A", "1", "key 'A' is not"),
        ("", "1", "key '' is not"),
        ("a" * 33, "1", "at most 32 long"),
        ("a", "1\n2", "control character or separator"),
        ("a", "1;2", "control character or separator"),
        ("a", "\x9b", "control character or separator"),
        ("a", "\udc80", "control character or separator"),
    ],
)
def test_encode_refuses_what_decode_would(key: str, value: str, words: str) -> None:
    with pytest.raises(FieldsError, match=words):
        fields.encode({key: value}, ";")


def test_at_most_64_fields_pass() -> None:
    many = {f"k{number}": "" for number in range(64)}
    assert fields.decode(fields.encode(many)) == many
    with pytest.raises(FieldsError, match="65 fields, at most 64"):
        fields.encode({**many, "last": ""})
    with pytest.raises(FieldsError, match="65 fields, at most 64"):
        fields.decode("\n".join(f"k{number}=" for number in range(65)))


def test_at_most_64_kib_pass_counted_in_bytes() -> None:
    assert fields.decode("a=" + "x" * 65_534)["a"] == "x" * 65_534
    for text in ("a=" + "x" * 65_535, "a=" + "ä" * 32_768):
        with pytest.raises(FieldsError, match="more than 65536 bytes"):
            fields.decode(text)
