import random

import pytest

from fabricctl import hostlist
from fabricctl.errors import DataError

EXPANDED = {
    "": [],
    "n1": ["n1"],
    "n[1-3]": ["n1", "n2", "n3"],
    "n[1-3,7]": ["n1", "n2", "n3", "n7"],
    "n[08-10]": ["n08", "n09", "n10"],
    "n[9-11]": ["n9", "n10", "n11"],
    "n3,n1": ["n3", "n1"],
    "a,b[2-3],c-d.e": ["a", "b2", "b3", "c-d.e"],
    "n[1-2]-ib": ["n1-ib", "n2-ib"],
    "r[0-1]n[00-01]": ["r0n00", "r0n01", "r1n00", "r1n01"],
    "n[1-2],m[5]": ["n1", "n2", "m5"],
    "n1-2": ["n1-2"],
}


@pytest.mark.parametrize("text", EXPANDED)
def test_a_list_expands_in_its_order(text: str) -> None:
    assert hostlist.expand(text) == EXPANDED[text]


WRONG = {
    "n[1-3": "host list 'n[1-3': brackets do not match",
    "n1-3]": "host list 'n1-3]': brackets do not match",
    "n[[1]]": "host list 'n[[1]]': brackets do not match",
    "n[]": "host list 'n[]': 'n[]' is not a host name",
    "n[a-b]": "host list 'n[a-b]': 'n[a-b]' is not a host name",
    "n[3-1]": "host list 'n[3-1]': range '3-1' is empty or too long",
    "n[1-]": "host list 'n[1-]': '1-' is not a range",
    "n[1,,2]": "host list 'n[1,,2]': '' is not a range",
    "n[0-99999999]": "host list 'n[0-99999999]': range '0-99999999' is empty or too long",
    "n1,,n2": "host list 'n1,,n2': '' is not a host name",
    "n1 n2": "host list 'n1 n2': 'n1 n2' is not a host name",
    "-rf": "host list '-rf': '-rf' is not a host name",
    "a/b": "host list 'a/b': 'a/b' is not a host name",
    "n[1-2]/x": "host list 'n[1-2]/x': '/x' is not a host name",
    "a[0-999]b[0-999]": "host list 'a[0-999]b[0-999]': more than 65536 hosts",
}


@pytest.mark.parametrize("text", WRONG)
def test_what_is_no_list_is_refused_with_this_very_message(text: str) -> None:
    with pytest.raises(DataError) as caught:
        hostlist.expand(text)
    assert str(caught.value) == WRONG[text]


FOLDED = {
    "": [],
    "n1": ["n1"],
    "n[1-3]": ["n3", "n1", "n2", "n1"],
    "n[1,3-4]": ["n1", "n3", "n4"],
    "n[08-10]": ["n10", "n08", "n09"],
    "n[8-10]": ["n8", "n9", "n10"],
    "n[1-2]-ib": ["n1-ib", "n2-ib"],
    "login,n[1-2]": ["n1", "n2", "login"],
    "n10x,n[2-3]": ["n10x", "n2", "n3"],
}


@pytest.mark.parametrize("text", FOLDED)
def test_names_fold_into_the_short_form(text: str) -> None:
    assert hostlist.fold(FOLDED[text]) == text


def test_folding_and_expanding_keep_every_name() -> None:
    rng = random.Random(20)
    for _ in range(300):
        width = rng.choice((0, 0, 2, 3, 4))
        names = {
            f"{rng.choice(('n', 'gpu-', 'r1n'))}{rng.randrange(1200):0{width}d}"
            f"{rng.choice(('', '', '-ib', 'x'))}"
            for _ in range(rng.randrange(1, 60))
        } | ({"login"} if rng.random() < 0.2 else set())
        folded = hostlist.fold(names)
        assert sorted(hostlist.expand(folded)) == sorted(names)
        assert hostlist.fold(hostlist.expand(folded)) == folded


def test_ten_thousand_regular_names_fold_to_one_range() -> None:
    names = [f"n{i:05d}" for i in range(10_000)]
    assert hostlist.fold(names) == "n[00000-09999]"
    assert hostlist.expand("n[00000-09999]") == names
