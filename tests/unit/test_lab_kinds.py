"""The words of faults, and what they do to ports."""

import pytest

from fabricctl.errors import UsageError
from fabricctl.lab.kinds import KINDS, make_fault, rate
from fabricctl.lab.ports import Effect, Port, wanted
from fabricctl.lab.spec import LabSpec
from fabricctl.lab.tc import Drop, program

SPEC = LabSpec()


@pytest.mark.parametrize(
    ("kind", "target", "options", "message"),
    [
        ("cutt", ("n1", "r0"), {}, "no fault 'cutt'; did you mean 'cut'?"),
        ("cut", ("n1",), {}, "fault cut: 1 targets given; it is: cut NODE INTERFACE"),
        ("cut", ("n6", "r0"), {}, "fault cut: no node 'n6'; there are: ctl, n1, n2, n3, n4, n5"),
        ("cut", ("n1", "r2"), {}, "fault cut: no interface 'r2'; there are: m0, r0, r1"),
        ("loss", ("n1", "r0"), {}, "fault loss: needs --percent: Share lost."),
        (
            "loss",
            ("n1", "r0"),
            {"percent": 101.0},
            "fault loss: percent 101.0 is outside 0.0001 to 100",
        ),
        (
            "loss",
            ("n1", "r0"),
            {"percent": float("nan")},
            "fault loss: percent nan is outside 0.0001 to 100",
        ),
        ("loss", ("n1", "r0"), {"percent": True}, "fault loss: percent True is not of type float"),
        (
            "loss",
            ("n1", "r0"),
            {"percents": 1.0},
            "fault loss: no option 'percents'; did you mean 'percent'?",
        ),
        (
            "blackhole",
            ("n1", "r0"),
            {"direction": "up"},
            "fault blackhole: direction 'up'; one of: both, tx, rx",
        ),
        (
            "rate",
            ("n1", "r0"),
            {"rate": "fast"},
            "rate 'fast': say it as 500kbit, 100mbit or 1gbit",
        ),
        (
            "disk-full",
            ("n1", "tmp"),
            {},
            "fault disk-full: no filesystem 'tmp'; there are: spool, disk",
        ),
        ("stop", ("n1", ""), {}, "fault stop: the match has 1 to 200 characters"),
        ("clock", ("ctl",), {}, "fault clock: the controller has no agent that would read it"),
    ],
)
def test_wrong_words_say_what_is_right(
    kind: str, target: tuple[str, ...], options: dict[str, object], message: str
) -> None:
    with pytest.raises(UsageError) as caught:
        make_fault(SPEC, kind, target, options)
    assert str(caught.value) == message


def test_an_id_names_kind_and_target_and_is_a_file_name() -> None:
    assert make_fault(SPEC, "cut", ("n2", "r0"), {}).id == "cut.n2.r0"
    assert make_fault(SPEC, "stop", ("n2", "a/../b c"), {}).id == "stop.n2.a____b_c"
    assert make_fault(SPEC, "shared-full", (), {}).id == "shared-full"


@pytest.mark.parametrize(
    ("text", "bits"), [("500kbit", 500_000), ("1.5Mbit", 1_500_000), ("10gbit", 10**10)]
)
def test_rates_are_read_as_tc_writes_them(text: str, bits: int) -> None:
    assert rate(text) == bits


def one(kind: str, *target: str, **options: object) -> dict[tuple[str, str], Effect]:
    named = {name.replace("_", "-"): value for name, value in options.items()}
    return make_fault(SPEC, kind, target, named).effects(SPEC)


def test_a_switch_fault_hits_every_port_of_its_rail_and_no_other() -> None:
    effects = one("switch-dead", "r1")
    assert set(effects) == {(node, "r1") for node in SPEC.all_nodes}
    assert set(effects.values()) == {Effect(cut=True)}


def test_a_dead_node_loses_every_link() -> None:
    assert set(one("power-off", "n3")) == {("n3", "m0"), ("n3", "r0"), ("n3", "r1")}


def test_faults_of_processes_touch_no_port() -> None:
    words = {"node": "n1", "service": "slurmd", "match": "x", "filesystem": "spool"}
    for name in ("freeze", "kill", "stop", "disk-full", "shared-full", "clock"):
        target = tuple(words[role] for role in KINDS[name].targets)
        assert make_fault(SPEC, name, target, {}).effects(SPEC) == {}


def test_a_port_is_what_all_faults_together_make_it() -> None:
    effects = [
        *one("cut", "n1", "r0").values(),
        *one("loss", "n1", "r0", percent=1.0, direction="tx").values(),
        *one("loss-large", "n1", "r0", above=1400).values(),
        *one("rate", "n1", "r0", rate="100mbit").values(),
        *one("rate", "n1", "r0", rate="10mbit", direction="rx").values(),
    ]
    assert wanted(10**9, effects) == Port(
        up=False,
        bridged=True,
        tx_drops=(Drop(1.0), Drop(100.0, 1400)),
        rx_drops=(Drop(100.0, 1400),),
        tx_rate_bit_per_s=10**8,
        rx_rate_bit_per_s=10**7,
    )


def test_no_fault_leaves_the_labs_own_rate() -> None:
    assert wanted(0, []) == Port()
    assert wanted(10**9, []) == Port(tx_rate_bit_per_s=10**9, rx_rate_bit_per_s=10**9)


def test_cross_traffic_caps_only_what_the_node_gets() -> None:
    (effect,) = one("cross", "n1", "r0", rate="100mbit").values()
    assert wanted(0, [effect]) == Port(rx_rate_bit_per_s=10**8)


def run(code: list[tuple[int, int, int, int]], length: int, chance: int) -> int:
    """Classic BPF, as far as our programs use it."""
    at, accumulator = 0, 0
    while True:
        operation, if_true, if_false, value = code[at]
        at += 1
        if operation == 0x06:
            return value
        if operation == 0x80:
            accumulator = length
        elif operation == 0x20:
            assert value == 0xFFFFF038
            accumulator = chance
        else:
            holds = accumulator > value if operation == 0x25 else accumulator >= value
            at += if_true if holds else if_false


DROPPED, LEFT_ALONE = 2, 0xFFFFFFFF


@pytest.mark.parametrize(
    ("drops", "length", "chance", "verdict"),
    [
        ((), 100, 0, LEFT_ALONE),
        ((Drop(),), 100, 0, DROPPED),
        ((Drop(25.0),), 100, 2**30 - 1, DROPPED),
        ((Drop(25.0),), 100, 2**30, LEFT_ALONE),
        ((Drop(above=1000),), 1014, 0, LEFT_ALONE),
        ((Drop(above=1000),), 1015, 0, DROPPED),
        ((Drop(50.0, 1000), Drop(above=2000)), 1500, 0, DROPPED),
        ((Drop(50.0, 1000), Drop(above=2000)), 1500, 2**32 - 1, LEFT_ALONE),
        ((Drop(50.0, 1000), Drop(above=2000)), 3000, 2**32 - 1, DROPPED),
        ((Drop(50.0, 1000), Drop(above=2000)), 900, 0, LEFT_ALONE),
    ],
)
def test_the_filter_drops_what_it_should(
    drops: tuple[Drop, ...], length: int, chance: int, verdict: int
) -> None:
    assert run(program(drops), length, chance) == verdict
