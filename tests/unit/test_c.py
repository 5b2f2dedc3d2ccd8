"""The plugin's C code that needs no Slurm, under the address and undefined-behaviour sanitizers."""

import random
import re
import subprocess
from pathlib import Path

import pytest

from fabricctl import fields
from fabricctl.errors import EnvelopeError, FieldsError
from fabricctl.records import Envelope
from tests.support.crunner import Runner
from tests.support.fields_cases import Case, cases

KEY = "5a" * 32


@pytest.fixture(scope="module")
def runner(tmp_path_factory: pytest.TempPathFactory) -> Runner:
    """Compiled once (1.5 s)."""
    return Runner(tmp_path_factory.mktemp("c"))


def decoded(answer: str) -> dict[str, str] | str:
    """A line of the runner: the fields, or what was wrong."""
    word, _, rest = answer.partition(" ")
    if word == "refused":
        return rest
    pairs = [pair.split("=") for pair in rest.split()]
    return {bytes.fromhex(k).decode(): bytes.fromhex(v).decode() for k, v in pairs}


# Fields ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def answers(runner: Runner) -> dict[str, dict[str, str] | str]:
    """All cases in one process, by name."""
    items = cases()
    lines = runner.lines("fields", [(item.separator.encode(), item.raw) for item in items])
    return {item.name: decoded(line) for item, line in zip(items, lines, strict=True)}


@pytest.mark.parametrize("case", cases(), ids=lambda case: case.name)
def test_decode_gives_the_fields_or_says_what_is_wrong(
    answers: dict[str, dict[str, str] | str], case: Case
) -> None:
    answer = answers[case.name]
    if case.fields is None:
        assert isinstance(answer, str)
        assert answer.startswith("fields: ")
        assert case.words in answer
    else:
        assert answer == case.fields


def python_decode(raw: bytes, separator: str) -> dict[str, str] | None:
    try:
        return fields.decode(raw.decode("utf-8", "surrogateescape"), separator)
    except FieldsError:
        return None


def mutated(rng: random.Random, seeds: list[bytes]) -> bytes:
    """Something near one of the cases."""
    raw = bytearray(rng.choice(seeds) + rng.choice([b"", b"\nz=", b";z=", b"\n"]))
    for _ in range(rng.randrange(3)):
        at = rng.randrange(len(raw) + 1)
        piece = rng.choice([b"=", b"\n", b";", b"a", b"\x00", b"\xc2", b"\xe2\x82\xac", b"\x9b"])
        if rng.random() < 0.5:
            raw[at:at] = piece
        else:
            del raw[at : at + 1]
    return bytes(raw)


def test_both_codecs_accept_the_same_texts(runner: Runner) -> None:
    rng = random.Random(20_251)
    seeds = [case.raw for case in cases() for _ in range(3 if case.fields else 1)]
    texts = [mutated(rng, seeds) for _ in range(4000)]
    items = [(text, rng.choice("\n;")) for text in texts]
    lines = runner.lines("fields", [(separator.encode(), text) for text, separator in items])
    accepted = 0
    for (text, separator), line in zip(items, lines, strict=True):
        expected = python_decode(text, separator)
        answer = decoded(line)
        assert (answer if isinstance(answer, dict) else None) == expected, (text, separator)
        accepted += expected is not None
    assert 400 < accepted < 3600  # the comparison saw both kinds


@pytest.mark.parametrize(
    ("raw", "words"),
    [
        (b"a=" + b"x" * 65_534, None),
        (b"a=" + b"x" * 65_535, "more than 65536 bytes"),
        (b"\n".join(b"k%d=" % number for number in range(64)), None),
        (b"\n".join(b"k%d=" % number for number in range(64)) + b"\n", None),
        (b"\n".join(b"k%d=" % number for number in range(65)), "65 fields, at most 64"),
        (b"\n" * 65_536, "65536 fields, at most 64"),
    ],
    ids=["64 KiB", "a byte more", "64 fields", "64 and a separator", "65 fields", "separators"],
)
def test_sizes_are_bounded(runner: Runner, raw: bytes, words: str | None) -> None:
    answer = decoded(runner.lines("fields", [(b"\n", raw)])[0])
    assert isinstance(answer, str) if words else isinstance(answer, dict)
    assert words is None or words in answer


def test_what_is_wrong_is_said_without_control_characters(runner: Runner) -> None:
    line = runner.lines("fields", [(b"\n", b"\x1b[2J\x07\xff" + b"x" * 100)])[0]
    assert line == "refused fields: '?[2J??" + "x" * 34 + "' is not key=value"


@pytest.mark.parametrize(
    ("key", "value", "text"),
    [
        ("mode", "on", "mode=on"),
        ("mode", "", "mode="),
        ("Mode", "on", None),
        ("", "on", None),
        ("a" * 33, "on", None),
        ("mode", "on;off", None),
        ("mode", "o\nn", None),
        ("mode", "\x9b", None),
        ("mode", "x" * 65_530, "mode=" + "x" * 65_530),
        ("mode", "x" * 65_532, None),
    ],
)
def test_append_refuses_what_decode_would(
    runner: Runner, key: str, value: str, text: str | None
) -> None:
    line = runner.lines("append", [(b";", key.encode(), value.encode())])[0]
    assert line == ("refused" if text is None else text.encode().hex())


# The envelope ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("mode", "spares", "missing", "rate"),
    [("on", 0, "warn", ""), ("observe", 99_999, "refuse", "0.125"), ("on", 3, "warn", "100")],
)
def test_python_reads_the_envelope_that_the_plugin_makes(
    runner: Runner, mode: str, spares: int, missing: str, rate: str
) -> None:
    made = Envelope.parse(runner("make", mode, str(spares), missing, rate, "60-80", "ptp").strip())
    assert (made.share, made.clock) == ("60-80", "ptp")
    assert (made.mode, made.spares, made.on_missing) == (mode, spares, missing)
    assert made.sample_hz == (float(rate) if rate else None)
    assert made.key != bytes(32)


def test_every_envelope_has_a_key_of_its_own(runner: Runner) -> None:
    keys = {Envelope.parse(runner("make", "on", "0", "warn", "").strip()).key for _ in range(20)}
    assert len(keys) == 20


GOOD = f"v=1;mode=on;key={KEY};spares=2;on_missing=refuse;sample_hz=0.5"


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        (GOOD, f"ok on {KEY} 2 refuse 0.5 - page"),
        (f"{GOOD};share=60-80", f"ok on {KEY} 2 refuse 0.5 60-80 page"),
        (f"{GOOD};share=0", f"ok on {KEY} 2 refuse 0.5 0 page"),
        (f"{GOOD};clock=system", f"ok on {KEY} 2 refuse 0.5 - system"),
        (f"{GOOD};clock=ptp", f"ok on {KEY} 2 refuse 0.5 - ptp"),
        (f"{GOOD};clock=page", f"ok on {KEY} 2 refuse 0.5 - page"),
        (f"v=1;mode=observe;key={KEY}", f"ok observe {KEY} 0 warn - - page"),
        (f"{GOOD};later=x;another=y", f"ok on {KEY} 2 refuse 0.5 - page"),
        (GOOD.replace("0.5", "0.1"), f"ok on {KEY} 2 refuse 0.1 - page"),
        (GOOD.replace("0.5", "100.000"), f"ok on {KEY} 2 refuse 100.000 - page"),
        ("", "version"),
        (GOOD.replace("v=1", "v=2"), "version"),
        (GOOD.replace("mode=on", "mode=off"), "mode"),
        (GOOD.replace("mode=on", "mode=max"), "mode"),
        (GOOD.replace(KEY, KEY[:-1]), "key"),
        (GOOD.replace(KEY, KEY + "0"), "key"),
        (GOOD.replace(KEY, KEY.upper()), "key"),
        (GOOD.replace("spares=2", "spares="), "spares"),
        (GOOD.replace("spares=2", "spares=-1"), "spares"),
        (GOOD.replace("spares=2", "spares=100000"), "spares"),
        (GOOD.replace("refuse", "ignore"), "on_missing"),
        (GOOD.replace("0.5", "0.099"), "sample_hz"),
        (GOOD.replace("0.5", "100.001"), "sample_hz"),
        (GOOD.replace("0.5", "1."), "sample_hz"),
        (GOOD.replace("0.5", "1e1"), "sample_hz"),
        (GOOD.replace("0.5", "nan"), "sample_hz"),
        (GOOD.replace("0.5", ""), "sample_hz"),
        *((f"{GOOD};share={text}", "share") for text in ("", "80-60", "101", "60-", "0-0", "6.5")),
        *((f"{GOOD};clock={text}", "clock") for text in ("", "real", "Page", "ptp0")),
        (GOOD + ";mode=on", "given twice"),
        (GOOD + "\nmode=on", "control character"),
    ],
)
def test_both_sides_agree_on_what_an_envelope_is(runner: Runner, text: str, answer: str) -> None:
    line = runner.lines("envelope", [(b";", text.encode())])[0]
    if answer.startswith("ok"):
        assert line == answer
        Envelope.parse(text)
    else:
        assert line.startswith("refused ")
        assert answer in line
        with pytest.raises(EnvelopeError):
            Envelope.parse(text)


# plugstack.conf -------------------------------------------------------------------------------

KNOWN = (
    "known are default, allow, allow_clock, hint, max_spares, max_share, on_missing, run_dir, "
    "sample_hz"
)
AS_DEFAULT = {
    "default": "off",
    "allow": "(off, observe, on)",
    "allow_clock": "(page)",
    "max_spares": "99999",
    "max_share": "50",
    "on_missing": "warn",
    "run_dir": "/run/fabricctl",
    "sample_hz": "",
    "hint": "",
}


def plugstack(runner: Runner, *arguments: str) -> tuple[list[str], dict[str, str]]:
    """What is reported, and the settings that differ from the defaults."""
    *reports, last = runner("args", *arguments).splitlines()
    settings = dict(re.findall(r"(\w+)=(\([^)]*\)|\S*)", last))
    return reports, {key: text for key, text in settings.items() if text != AS_DEFAULT[key]}


@pytest.mark.parametrize(
    ("arguments", "settings"),
    [
        ((), {}),
        (("default=on",), {"default": "on"}),
        (("default=observe", "allow=observe"), {"default": "observe", "allow": "(off, observe)"}),
        (("allow=on",), {"allow": "(off, on)"}),
        (("allow=observe,on",), {}),
        (("allow=off,on,observe,on",), {}),
        (("allow=",), {"allow": "(off)"}),
        (("allow_clock=page,system",), {"allow_clock": "(page, system)"}),
        (("allow_clock=ptp",), {"allow_clock": "(page, ptp)"}),
        (("allow_clock=system,ptp",), {"allow_clock": "(page, ptp, system)"}),
        (("max_spares=0",), {"max_spares": "0"}),
        (("max_share=100",), {"max_share": "100"}),
        (("on_missing=refuse",), {"on_missing": "refuse"}),
        (("hint=/shared/hint",), {"hint": "/shared/hint"}),
        (("run_dir=/run/x", "sample_hz=0.25"), {"run_dir": "/run/x", "sample_hz": "0.25"}),
    ],
)
def test_plugstack_arguments_set_what_they_name(
    runner: Runner, arguments: tuple[str, ...], settings: dict[str, str]
) -> None:
    assert plugstack(runner, *arguments) == ([], settings)


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("alow=on", "unknown key 'alow': did you mean 'allow'?"),
        ("Default=on", "unknown key 'Default': did you mean 'default'?"),
        ("max_spare=1", "unknown key 'max_spare': did you mean 'max_spares'?"),
        ("on_mising=warn", "unknown key 'on_mising': did you mean 'on_missing'?"),
        ("rundir=/x", "unknown key 'rundir': did you mean 'run_dir'?"),
        ("sample_rate=1", "unknown key 'sample_rate': did you mean 'sample_hz'?"),
        ("colour=blue", f"unknown key 'colour': {KNOWN}"),
        ("=on", f"unknown key '': {KNOWN}"),
        ("on", f"unknown key 'on': {KNOWN}"),
        ("x" * 5000, f"unknown key '{'x' * 40}': {KNOWN}"),
        ("\x1b[2J=1", f"unknown key '?[2J': {KNOWN}"),
        ("default", "default=: not off, observe or on; ignored"),
        ("default=", "default=: not off, observe or on; ignored"),
        ("default=On", "default=On: not off, observe or on; ignored"),
        ("default=yes", "default=yes: not off, observe or on; ignored"),
        ("allow=all", "allow=all: not a list of observe and on, with commas; ignored"),
        ("allow=on;off", "allow=on;off: not a list of observe and on, with commas; ignored"),
        ("allow=,on", "allow=,on: not a list of observe and on, with commas; ignored"),
        ("allow=on,", "allow=on,: not a list of observe and on, with commas; ignored"),
        ("alow_clock=ptp", "unknown key 'alow_clock': did you mean 'allow_clock'?"),
        (
            "allow_clock=all",
            "allow_clock=all: not a list of page, ptp and system, with commas; ignored",
        ),
        ("max_spares=many", "max_spares=many: not a number of nodes, 0 to 99999; ignored"),
        ("max_spares=-1", "max_spares=-1: not a number of nodes, 0 to 99999; ignored"),
        ("max_spares=100000", "max_spares=100000: not a number of nodes, 0 to 99999; ignored"),
        ("max_share=10-20", "max_share=10-20: not a number of percent, 0 to 100; ignored"),
        ("max_share=101", "max_share=101: not a number of percent, 0 to 100; ignored"),
        ("on_missing=fail", "on_missing=fail: not warn or refuse; ignored"),
        ("hint=x", "hint=x: not an absolute path; ignored"),
        ("run_dir=run", "run_dir=run: not an absolute path; ignored"),
        ("sample_hz=0", "sample_hz=0: not a number, 0.1 to 100; ignored"),
        ("sample_hz=1000", "sample_hz=1000: not a number, 0.1 to 100; ignored"),
        ("sample_hz=1,5", "sample_hz=1,5: not a number, 0.1 to 100; ignored"),
    ],
)
def test_a_wrong_plugstack_argument_is_named_and_left_out(
    runner: Runner, argument: str, message: str
) -> None:
    assert plugstack(runner, argument) == ([f"fabric: plugstack: {message}"], {})


def test_a_run_dir_too_long_for_a_path_is_left_out(runner: Runner) -> None:
    reports, settings = plugstack(runner, "run_dir=/" + "x" * 300)
    assert reports[0].endswith("x: not an absolute path; ignored")
    assert settings == {}


def test_arguments_after_a_wrong_one_still_count(runner: Runner) -> None:
    reports, settings = plugstack(runner, "alow=on", "default=on", "max_spares=x", "sample_hz=2")
    assert len(reports) == 2
    assert settings == {"default": "on", "sample_hz": "2"}


def test_of_an_argument_given_twice_the_first_counts(runner: Runner) -> None:
    reports, settings = plugstack(runner, "max_spares=1", "max_spares=2")
    assert reports == ["fabric: plugstack: max_spares=2: given twice, the first one counts"]
    assert settings == {"max_spares": "1"}


@pytest.mark.parametrize("arguments", [("default=on", "allow=observe"), ("allow=", "default=on")])
def test_a_default_that_is_not_allowed_becomes_off(
    runner: Runner, arguments: tuple[str, ...]
) -> None:
    reports, settings = plugstack(runner, *arguments)
    wanted = "default=on: not among those that allow= names; off is the default"
    assert reports == [f"fabric: plugstack: {wanted}"]
    assert "default" not in settings


def test_the_documentation_has_every_plugstack_argument(runner: Runner) -> None:
    text = (Path(__file__).parents[2] / "docs" / "options.md").read_text()
    documented = re.findall(r"^\| `(\w+)=` \|", text, re.MULTILINE)
    assert "known are " + ", ".join(documented) == KNOWN
    for key in documented:
        reports, _ = plugstack(runner, f"{key}=\x01")
        assert "unknown key" not in reports[0]


def test_the_runner_itself_ends_badly_when_a_sanitizer_complains(tmp_path: Path) -> None:
    """Else none of this would mean anything."""
    source = tmp_path / "bad.c"
    source.write_text("int main(int c, char **v) { char x[4]; return x[c + 3] + !v; }")
    program = tmp_path / "bad"
    flags = ["-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-w"]
    subprocess.run(["gcc", *flags, "-o", str(program), str(source)], check=True, timeout=60)
    done = subprocess.run([str(program)], capture_output=True, check=False, timeout=60)
    assert done.returncode != 0
