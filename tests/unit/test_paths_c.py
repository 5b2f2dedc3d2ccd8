"""Builds fabric-pathd without a warning and runs its C tests."""

import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def make(*args: str, out: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["make", "-s", "-C", str(ROOT / "fabricctl" / "paths"), f"OUT={out}", *args],
        capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("paths")
    done = make("all", "test", out=out)
    assert (done.returncode, done.stderr) == (0, ""), done.stdout
    return out


def test_hostile_datagrams_under_sanitizers(tmp_path: Path) -> None:
    """What reads datagrams, and nothing else: the whole daemon takes half a minute to build so."""
    pathd = ROOT / "fabricctl" / "paths" / "pathd"
    sources = [str(pathd / f"{name}.c") for name in ("wire", "siphash", "address")]
    flags = ["-std=gnu11", "-D_GNU_SOURCE", "-O1", "-g", f"-I{pathd}",
             "-fsanitize=address,undefined", "-fno-sanitize-recover=all"]  # fmt: skip
    test, program = ROOT / "tests" / "c" / "paths" / "test_wire.c", tmp_path / "test_wire"
    subprocess.run(["cc", *flags, "-o", program, test, *sources, "-lm"], check=True, timeout=300)
    done = subprocess.run([program], capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_c_tests_pass(built: Path) -> None:
    ran = sorted(path.name for path in built.glob("test_*"))
    words = "cause control failback filter hello lease neighbours pace pair probing reroute"
    assert ran == [f"test_{word}" for word in (*words.split(), "sockets", "wire")]


CONFIGURATION = """job 7
self 0
key 000102030405060708090a0b0c0d0e0f
ports 20501 20502 20503 20504
manage 127.0.0.1
pool4 100.64.0.0/10
rail lo fab0 10.0.0.1/8 -
rail lo fab1 10.1.0.1/8 -
node n1 127.0.0.1
node n2 127.0.0.2
dir {dir}
leases {dir}
end
"""

WRONG = {
    "job 7": ("job 0", "configuration: job: number out of range"),
    "self 0": ("self 2", "configuration: end: manage is missing, or self is not one of the nodes"),
    "key 000102030405060708090a0b0c0d0e0f": (
        "key 00",
        "configuration: key: needs 32 hexadecimal digits",
    ),
    "ports 20501 20502 20503 20504": ("ports 1 2 3", "configuration: ports: needs a number"),
    "manage 127.0.0.1": ("manage here", "configuration: manage: is not an address"),
    "pool4 100.64.0.0/10": (
        "pool4 100.64.0.0/24",
        "configuration: pool4: needs a network of its family and of a possible size",
    ),
    "rail lo fab1 10.1.0.1/8 -": (
        "",
        "configuration: end: fewer than two rails, or neither a pool nor own addresses",
    ),
    "node n2 127.0.0.2": (
        "node n2",
        "configuration: node: needs name and address, and at most 8000 of it",
    ),
    "leases {dir}": ("nonsense 1", "configuration: nonsense: is not known"),
    "end\n": ("", "configuration: ended without `end`"),
}  # fmt: skip


@pytest.mark.parametrize("line", WRONG)
def test_a_wrong_configuration_is_refused_with_this_very_message(
    line: str, built: Path, tmp_path: Path
) -> None:
    wrong, message = WRONG[line]
    text = CONFIGURATION.replace(line, wrong).replace("{dir}", str(tmp_path))
    done = subprocess.run(
        [built / "fabric-pathd", "run"],
        input=text, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (2, f"fabric: paths: {message}\n")


def test_a_sysctl_that_somebody_changed_since_is_left_as_it_is(built: Path, tmp_path: Path) -> None:
    conf = Path("/proc/sys/net/ipv4/conf")
    (tmp_path / "sysctl.saved").write_text(f"{conf}/lo/rp_filter 1\n{conf}/default/rp_filter 1\n")
    inside = (
        f"cd {conf} && echo 0 >lo/rp_filter && echo 2 >default/rp_filter && "
        f"{built}/fabric-pathd clean {tmp_path} && cat lo/rp_filter default/rp_filter"
    )
    done = subprocess.run(
        ["unshare", "--map-root-user", "--net", "sh", "-c", inside],
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    if "unshare" in done.stderr or "cannot create" in done.stderr:
        pytest.skip(f"no network of its own here: {done.stderr.strip()}")
    assert (done.stderr, done.stdout.splitlines()[1:]) == ("", ["0", "1"])
    assert not (tmp_path / "sysctl.saved").exists()


OVER = """
ip link set lo up && ip address add 10.0.0.1/24 dev lo && ip address add 10.1.0.1/24 dev lo
mkdir watch; "$1" run <conf 2>said & guardian=$!
until grep -qs -e state=ready -e state=off state; do sleep 0.05; done
kill -STOP $guardian; kill -KILL $(sed -n s/^pid=//p state)
ip address del 10.1.0.1/24 dev lo; rmdir watch
kill -CONT $guardian; wait $guardian
echo $? $(ip rule | grep -c 30000); ls
"""


def test_one_that_cannot_start_again_ends_with_its_job(built: Path, tmp_path: Path) -> None:
    text = CONFIGURATION.format(dir=tmp_path).replace("pool4 100.64.0.0/10", "own 0")
    text = text.replace("10.0.0.1/8", "10.0.0.1/24").replace("10.1.0.1/8", "10.1.0.1/24")
    (tmp_path / "conf").write_text(text.replace("end\n", f"watch {tmp_path}/watch\nend\n"))
    done = subprocess.run(
        ["unshare", "--map-root-user", "--net", "--pid", "--fork", "--kill-child", "--mount-proc",
         "bash", "-c", OVER, "-", built / "fabric-pathd"],
        capture_output=True, text=True, timeout=60, check=False, cwd=tmp_path,
    )  # fmt: skip
    if "unshare" in done.stderr:
        pytest.skip(f"no network of its own here: {done.stderr.strip()}")
    assert done.stdout.split()[:2] == ["0", "0"], done.stdout + done.stderr
    assert "0.lease" not in done.stdout


def test_usage_is_told(built: Path) -> None:
    done = subprocess.run(
        [built / "fabric-pathd", "walk"], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 2
    assert done.stderr.startswith("usage: fabric-pathd run")
