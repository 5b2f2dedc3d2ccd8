import pytest

from fabricctl.errors import DataError, EnvelopeError, UsageError
from fabricctl.layout import job_number, parse_spool, spool
from fabricctl.records import Envelope, JobStart

KEY = "0f" * 32
TEXT = f"v=1;mode=on;key={KEY};spares=1;on_missing=refuse;sample_hz=10"
REQUEST = (
    "job=12\nuid=6001\nuser=alice\nnodes=n[1-4]\nnode=n2\ncluster=lab\n"
    f"envelope=v=1;mode=on;key={KEY}"
)


def test_an_envelope_survives_the_round_trip() -> None:
    envelope = Envelope.parse(TEXT)
    assert envelope == Envelope("on", bytes.fromhex(KEY), 1, "refuse", 10.0)
    assert Envelope.parse(envelope.text()) == envelope


def test_unknown_keys_of_the_same_version_are_ignored() -> None:
    assert Envelope.parse(f"v=1;mode=observe;key={KEY};colour=red").mode == "observe"


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("v=1", "v=2", "envelope: version '2', this side knows 1"),
        ("mode=on", "mode=off", "envelope: mode 'off' is not observe or on"),
        ("key=0f", "key=0F", "envelope: key is not 64 lower-case hexadecimal digits"),
        ("spares=1", "spares=-1", "envelope: spares '-1' is not a number of nodes"),
        ("refuse", "kill", "envelope: on_missing 'kill' is not warn or refuse"),
        ("hz=10", "hz=1000", "envelope: sample_hz '1000' is not 0.1 to 100"),
        ("hz=10", "hz=nan", "envelope: sample_hz 'nan' is not 0.1 to 100"),
        (";mode", ";mode=observe;mode", "envelope: fields: key 'mode' is given twice"),
        (";mode", ";;mode", "envelope: fields: '' is not key=value"),
    ],
)
def test_a_wrong_envelope_says_what_is_wrong(old: str, new: str, message: str) -> None:
    with pytest.raises(EnvelopeError) as caught:
        Envelope.parse(TEXT.replace(old, new, 1))
    assert str(caught.value) == message


def test_a_start_request_survives_the_round_trip() -> None:
    start = JobStart.parse(REQUEST)
    assert (start.job, start.uid, start.nodes) == (12, 6001, ("n1", "n2", "n3", "n4"))
    assert JobStart.parse(start.text()) == start


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("job=12", "job=0"),
        ("job=12", "job=../12"),
        ("uid=6001", "uid=-1"),
        ("uid=6001\n", ""),
        ("user=alice", "user=../alice"),
        ("user=alice", "user=-alice"),
        ("nodes=n[1-4]", "nodes=n[1-"),
        ("node=n2", "node=n9"),
        ("cluster=lab", "cluster=lab\njob=13"),
        ("envelope=v=1", "envelope=v=1\nuid=0"),
    ],
)
def test_a_hostile_start_request_is_refused(old: str, new: str) -> None:
    with pytest.raises((DataError, EnvelopeError)):
        JobStart.parse(REQUEST.replace(old, new, 1))


@pytest.mark.parametrize("text", ["", "0", "-1", "1.0", "1e3", "12_3", "99999999999"])
def test_a_job_id_is_a_whole_number(text: str) -> None:
    with pytest.raises(UsageError):
        job_number(text)


def test_spool_names_are_read_back() -> None:
    from pathlib import Path

    assert parse_spool(spool(Path("/s"), 12, 345)) == (12, 345)
    assert parse_spool(Path("/s/lost+found")) is None
