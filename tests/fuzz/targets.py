"""Every parser that reads what somebody else wrote, with what it may answer to anything at all.

``tests/unit/test_fuzz.py`` gives each some hundreds of damaged inputs, from a seed; ``python -m
tests.fuzz NAME`` goes on for hours, led by coverage (atheris). What once broke one is kept in
tests/fuzz/corpus/NAME.
"""

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from fabricctl import config, fields, hostlist, wire
from fabricctl.agent.blocks import Blocks
from fabricctl.agent.peers import Peers
from fabricctl.clock import exchange
from fabricctl.errors import FabricError
from fabricctl.fleet.audit import report as audit
from fabricctl.fleet.inventory import formats
from fabricctl.paths import events
from fabricctl.records import Envelope, JobStart
from fabricctl.slurm import json_shapes, siteconf, topology
from fabricctl.slurm import text as slurm_text
from fabricctl.state.track import block
from fabricctl.store import journal_reader
from fabricctl.telemetry import processes
from tests.support.fields_cases import cases

CORPUS = Path(__file__).parent / "corpus"
RECORDED = Path(__file__).parents[1] / "data" / "slurm"
KEY = bytes(range(32))


@dataclass(frozen=True)
class Target:
    """``run`` raises nothing but :class:`FabricError`, whatever it is given."""

    run: Callable[[bytes], object]
    seeds: tuple[bytes, ...]
    words: tuple[bytes, ...] = ()  # what inputs of this kind are made of

    def check(self, data: bytes) -> None:
        """Raises what the parser must not raise."""
        try:
            self.run(data)
        except FabricError:
            pass


def text(parse: Callable[[str], object]) -> Callable[[bytes], object]:
    """A parser of texts: bytes that are none come as files are read, with marks for them."""

    def run(data: bytes) -> object:
        found = parse(data.decode(errors="surrogateescape"))
        return list(found) if isinstance(found, Iterator) else found

    return run


def _sealed(data: bytes) -> object:
    """Both ways: as it came, and as a holder of the key would have sealed it."""
    try:
        wire.open_sealed(data, KEY)
    except FabricError:
        pass
    return wire.open_sealed(wire.MAGIC + wire._mac(data, KEY) + data, KEY)


def _peers(data: bytes) -> object:
    """What another node of the job says, the key being right."""
    peers = Peers(("n1", "n2", "n3"), "n1", 0.0, lambda *_: None, random.Random(1))
    peers.receive(fields.decode(data.decode(errors="surrogateescape")), 1.0)
    return peers.tell_changes(20.0)


def _blocks(data: bytes) -> object:
    """The same in a job of many nodes, to one of those who gather it."""
    nodes = tuple(f"n{number}" for number in range(1, 31))
    blocks = Blocks(nodes, "n1", 0.0, lambda *_: None, random.Random(1))
    blocks.receive(fields.decode(data.decode(errors="surrogateescape")), 1.0)
    return blocks.tell_changes(20.0)


def _clock(data: bytes) -> object:
    kind, body = data[:1], data[1:]
    if kind == b"h":
        return exchange.unpack_hello(body)
    if kind == b"r":
        return exchange.unpack_report(body, 1)
    if kind == b"a":
        return exchange.unpack_answer(body, 1)
    return exchange.Seal(KEY, 7, 1, 1).open(data)


def _toml(data: bytes) -> object:
    path = Path("/dev/shm") / "fabricctl-fuzz.toml"
    path.write_bytes(data)
    return config.load(path, {})


def _slurm_conf(data: bytes) -> object:
    found = data.decode(errors="surrogateescape")
    assert siteconf.without_block(siteconf.with_block(found, ["Prolog=x"])) == (
        siteconf.without_block(found)
    )
    return None


def _slurm_json(data: bytes) -> object:
    made = {"jobs": json_shapes.job, "nodes": json_shapes.node}
    found = data.decode(errors="surrogateescape")
    return [
        json_shapes.converted(kind, each, key)
        for key, kind in made.items()
        for each in json_shapes.records(found, key, "fuzz")
    ]


def recorded(pattern: str, most: int = 3) -> tuple[bytes, ...]:
    """Beginnings of what real Slurms printed."""
    return tuple(path.read_bytes()[:6000] for path in sorted(RECORDED.rglob(pattern))[:most])


ENVELOPE = b"v=1;mode=on;key=" + b"5a" * 32 + b";spares=1;on_missing=warn;sample_hz=10"
START = (
    b"job=17\nuid=2001\nuser=ann\nnodes=n[1-3]\nnode=n1\ncluster=c\npartition=main\nenvelope="
    + ENVELOPE
)
HELLO = b"job=7\nnode=n2\nlife=1\nseq=4\nkind=hello\nunplugged=0"
ANSWER = b"kind=answer\nnode=n2\nprotected=3\nmissing=n[2-3]\nunplugged=\nsettled=1"
LISTS = (b"n[1-3,7]", b"a1,b[01-10]-ib,c", b"rack[1-2]node[1-3]", b"n[1-100000000]")
_STAT = b"7 (NAME) S " + b" ".join(str(number).encode() for number in range(1, 50)) + b"\n"
_FIELD_SEEDS = tuple(case.raw for case in cases() if case.fields)[:20]

TARGETS: dict[str, Target] = {
    "fields": Target(text(fields.decode), (*_FIELD_SEEDS, HELLO), (b"=", b"\n", b"\x9b")),
    "wire": Target(_sealed, (HELLO, ANSWER, wire.seal({"a": "b"}, KEY)), (b"\n", b"=")),
    "peers": Target(
        _peers, (HELLO, ANSWER, b"kind=bye\nnode=n3"), (b"missing=", b"[", b"]", b"n1-")
    ),
    "blocks": Target(
        _blocks,
        (
            HELLO,
            ANSWER + b"\nall_protected=30\nall_missing=n[9-30]\nall_unplugged=\nall_settled=1",
            ANSWER.replace(b"=answer\nnode=n2", b"=block\nnode=n12").replace(b"n[2-3]", b"n13"),
            ANSWER.replace(b"=answer", b"=whole"),
        ),
        (b"kind=block", b"kind=whole", b"all_missing=", b"[", b"]", b"n1-"),
    ),
    "envelope": Target(text(Envelope.parse), (ENVELOPE,), (b";", b"=", b"on")),
    "start": Target(text(JobStart.parse), (START,), (b"\n", b"envelope=", b"[1-")),
    "hostlist": Target(text(hostlist.expand), LISTS, (b"[", b"]", b"-", b",", b"000", b"99999999")),
    "clock": Target(
        _clock,
        (
            b"h" + exchange.pack_hello(exchange.Hello((("10.0.0.1", 7),), 5, False)),
            b"r" + bytes(32) * 4,
            b"a" + bytes(8) * 7,
            exchange.Seal(KEY, 7, 2, 1).close(1, 1, b"body"),
        ),
        (b"\xff" * 8, b"\x7f\xf0", b"/"),
    ),
    "config": Target(
        _toml,
        (b"[agent]\nsample_hz = 10\n", b'[partition.gpu]\nagent.max_mode = "off"\n'),
        (b"[", b"]", b'"', b"=", b"nan", b"1e999", b"[partition.x]\n", b"true"),
    ),
    "slurm-conf": Target(
        _slurm_conf,
        (b"ClusterName=x\nProlog=/a\n", siteconf.with_block("a=b", ["x"]).encode()),
        (b"\n", b"# >>> fabricctl site enable", b"# <<< fabricctl\n"),
    ),
    "path-event": Target(
        text(events.row), (b"event=path;peer=n2;rail=1;time_mono_ns=5;streams=3",), (b";", b"=")
    ),
    "track-block": Target(block.parse, (block.MAGIC + bytes(block.RING_AT),), (b"\xff" * 4,)),
    "journal": Target(journal_reader.read, (), (b"\xff" * 4, b"\0" * 8)),
    "slurm-json": Target(
        _slurm_json, recorded("*.json"), (b"{", b"}", b"null", b"[", b'""', b"-1")
    ),
    "slurm-nodes": Target(text(slurm_text.nodes), recorded("*node*"), (b"=", b" ", b"\n", b"(")),
    "slurm-jobs": Target(
        text(lambda found: slurm_text.jobs(found, "", "")),
        recorded("*squeue*format-a*"),
        (b"\x1e", b"\x1f"),
    ),
    "slurm-usage": Target(
        text(lambda found: slurm_text.usage(found, "")), recorded("*sacct*"), (b"\x1f", b"\n")
    ),
    "slurm-partitions": Target(
        text(lambda found: [*slurm_text.partitions(found), *slurm_text.reservations(found)]),
        (*recorded("*show-partition*"), *recorded("*show-reservation*")),
        (b"=", b" ", b"\n"),
    ),
    "slurm-config": Target(text(slurm_text.configuration), recorded("*config*"), (b"=", b"\n")),
    "topology": Target(
        text(topology.parse), (b"SwitchName=s1 Level=0 Nodes=n[1-2]\n",), (b"=", b"[")
    ),
    "inventory-yaml": Target(
        text(formats.read_yaml),
        (b"nodes:\n  n[1-2]:\n    nic: {r0: {mtu: 9000}}\n",),
        (b"{", b"}", b": ", b"&a ", b"*a", b"!!python/object:os.system ", b"\n  "),
    ),
    "inventory-csv": Target(text(formats.read_csv), (b"node,key,value\nn1,a,b\n",), (b",", b'"')),
    "inventory-netbox": Target(
        text(formats.read_netbox), (b'{"results": [{"name": "n1", "serial": "x"}]}',), (b"{", b"[")
    ),
    "audit-report": Target(text(audit.read), (b'{"checks": [], "sha256": ""}',), (b"{", b"null")),
    # The kernel writes all but the name, which is the process's own choice.
    "proc-stat": Target(
        lambda name: processes.parse_stat(_STAT.replace(b"NAME", name[:15])),
        (b"app", b"a) S 1 (b", b") R 2"),
        (b")", b"(", b" ", b"\n"),
    ),
}


def harmed(seeds: tuple[bytes, ...], words: tuple[bytes, ...], chance: random.Random) -> bytes:
    """Something near one of the seeds."""
    data = bytearray(chance.choice(seeds)) if seeds else bytearray(chance.randbytes(64))
    for _ in range(chance.choice((1, 1, 2, 3, 6))):
        at = chance.randrange(len(data) + 1)
        what = chance.randrange(6)
        if what == 0 and data:
            data[at % len(data)] ^= 1 << chance.randrange(8)
        elif what == 1:
            data[at : at + chance.choice((1, 4, 30))] = b""
        elif what == 2 and words:
            data[at:at] = chance.choice(words)
        elif what == 3:
            data[at:at] = chance.randbytes(chance.choice((1, 3, 8)))
        elif what == 4:
            other = bytearray(chance.choice(seeds)) if seeds else data
            data[at:] = other[chance.randrange(len(other) + 1) :]
        else:
            piece = bytes(data[at : at + chance.choice((1, 8, 40))])
            data[at:at] = piece * chance.choice((1, 2, 50))
    return bytes(data[:100_000])
