"""Datagrams between agents: what is accepted and what is not."""

import random

import pytest

from fabricctl import wire
from fabricctl.errors import DataError

KEY = bytes(range(32))
MESSAGE = {"job": "7", "node": "n1", "life": "12", "seq": "3", "kind": "hello"}


def test_a_sealed_message_comes_back_whole() -> None:
    assert wire.open_sealed(wire.seal(MESSAGE, KEY), KEY) == MESSAGE


def test_another_jobs_key_does_not_open_it() -> None:
    with pytest.raises(DataError, match="not sealed with the job's key"):
        wire.open_sealed(wire.seal(MESSAGE, KEY), bytes(32))


def test_every_single_flipped_bit_is_noticed() -> None:
    datagram = wire.seal(MESSAGE, KEY)
    for bit in range(len(datagram) * 8):
        damaged = bytearray(datagram)
        damaged[bit // 8] ^= 1 << bit % 8
        with pytest.raises(DataError):
            wire.open_sealed(bytes(damaged), KEY)


def test_every_cut_and_every_addition_is_noticed() -> None:
    datagram = wire.seal(MESSAGE, KEY)
    for size in range(len(datagram)):
        with pytest.raises(DataError):
            wire.open_sealed(datagram[:size], KEY)
    with pytest.raises(DataError):
        wire.open_sealed(datagram + b"\n", KEY)


def test_random_bytes_raise_nothing_but_data_errors() -> None:
    rng = random.Random(5)
    for _ in range(3000):
        body = rng.randbytes(rng.randrange(200))
        for datagram in (body, wire.MAGIC + body):
            with pytest.raises(DataError):
                wire.open_sealed(datagram, KEY)


def test_sealed_nonsense_raises_nothing_but_data_errors() -> None:
    """Who has the key (the job's own user) can seal anything."""
    rng = random.Random(6)
    for _ in range(2000):
        text = rng.choice([rng.randbytes(rng.randrange(60)), b"a=\xff\n", b"x=1\nx=2", b"=", b""])
        datagram = wire.MAGIC + wire._mac(text, KEY) + text
        try:
            opened = wire.open_sealed(datagram, KEY)
        except DataError:
            continue
        assert all(isinstance(value, str) for value in opened.values())


def test_a_message_that_fits_no_datagram_is_refused_where_it_is_made() -> None:
    with pytest.raises(DataError, match="do not fit a datagram"):
        wire.seal({"missing": "n" * 60_000}, KEY)


def test_a_copy_of_a_message_is_accepted_once() -> None:
    fresh = wire.Freshness()
    assert fresh.accepts("n1", 5, 1)
    assert not fresh.accepts("n1", 5, 1)
    assert fresh.accepts("n2", 5, 1)


def test_nothing_of_an_earlier_life_is_accepted() -> None:
    fresh = wire.Freshness()
    assert fresh.accepts("n1", 5, 900)
    assert fresh.accepts("n1", 6, 1)
    assert not fresh.accepts("n1", 5, 901)


@pytest.mark.parametrize("text", ["", "-1", "1.0", "1" * 21, "٣", "x"])
def test_a_number_field_is_digits_and_nothing_else(text: str) -> None:
    with pytest.raises(DataError, match="is not a number"):
        wire.number({"seq": text}, "seq")
