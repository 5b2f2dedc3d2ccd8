"""Plain srun in a protected job: its tasks find the rails without a line in the job script."""

import pytest

from fabricctl.lab.cluster import Lab
from tests.lab.test_paths_jobs import _built  # noqa: F401 - fixture
from tests.lab.test_plugin_steps import batch

pytestmark = pytest.mark.lab

SHOW = (
    "echo $1 $(hostname) ompi=$OMPI_MCA_btl_tcp_if_include ucx=$UCX_NET_DEVICES "
    "nccl=$NCCL_SOCKET_IFNAME set=${FABRIC_PATHS:+yes}"
)


def lines(text: str, word: str) -> set[str]:
    return {line.partition(" ")[2] for line in text.splitlines() if line.startswith(f"{word} ")}


def test_tasks_get_the_rails_and_keep_what_the_user_chose(lab: Lab) -> None:
    show = f"sh -c '{SHOW}' show"
    said = batch(
        lab,
        f"{show} script\nsrun {show} plain\n"
        f"UCX_NET_DEVICES=m0 srun {show} mine\n"
        f"srun --fabric-resilience=observe {show} observed\n"
        f"srun --fabric-resilience=off {show} bare\n",
        "-N2",
        "--fabric-resilience",
    )
    rails = "ompi=r0,r1 ucx=r0,r1 nccl==r0,r1 set=yes"
    assert lines(said, "script") == {f"n1 {rails}"}
    assert lines(said, "plain") == {f"n1 {rails}", f"n2 {rails}"}
    assert lines(said, "mine") == {
        f"{node} ompi=r0,r1 ucx=m0 nccl==r0,r1 set=yes" for node in ("n1", "n2")
    }
    nothing = {f"{node} ompi= ucx= nccl= set=" for node in ("n1", "n2")}
    assert lines(said, "observed") == lines(said, "bare") == nothing


def test_jobs_without_the_flag_or_with_one_node_get_none(lab: Lab) -> None:
    show = f"sh -c '{SHOW}' show"
    for options in (["-N2"], ["-N1", "--fabric-resilience"]):
        said = batch(lab, f"srun {show} plain\n", *options)
        assert {line.partition(" ")[2] for line in lines(said, "plain")} == {
            "ompi= ucx= nccl= set="
        }
