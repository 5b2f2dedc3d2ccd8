"""What each communication library needs so that its TCP traffic uses the fabric addresses.

One table, applied to every task of a job whose paths are ready; a variable that the user has set
is left alone. Nothing here touches RDMA: where a node has RDMA devices, the variables that would
keep a library from using them (``keeps_from_rdma``) are left out.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Steering:
    """One variable. ``value``: all devices, comma-separated, or the first alone."""

    library: str
    variable: str
    value: Literal["all", "first", "exact"]
    source: str
    keeps_from_rdma: bool = False


TABLE: tuple[Steering, ...] = (
    Steering(
        "Open MPI 4 and 5, BTL tcp",
        "OMPI_MCA_btl_tcp_if_include",
        "all",
        "ompi_info --param btl tcp; connections stripe over both devices",
    ),
    Steering(
        "UCX (Open MPI's pml ucx, MPICH ch4:ucx)",
        "UCX_NET_DEVICES",
        "all",
        "ucx_info -c; names network and RDMA devices alike",
        keeps_from_rdma=True,
    ),
    Steering(
        "libfabric, provider tcp (MPICH ch4:ofi, Intel MPI)",
        "FI_TCP_IFACE",
        "first",
        "fi_tcp(7): one interface name",
    ),
    Steering(
        "libfabric, provider sockets",
        "FI_SOCKETS_IFACE",
        "first",
        "fi_sockets(7)",
    ),
    Steering(
        "PyTorch, Gloo",
        "GLOO_SOCKET_IFNAME",
        "all",
        "torch.distributed: operations go round-robin over the interfaces",
    ),
    Steering(
        "PyTorch, TensorPipe",
        "TP_SOCKET_IFNAME",
        "first",
        "torch.distributed.rpc",
    ),
    Steering(
        "NCCL and RCCL, socket transport and bootstrap",
        "NCCL_SOCKET_IFNAME",
        "exact",
        "NCCL user guide: '=' asks for exact names",
    ),
)


def environment(devices: Sequence[str], rdma: bool) -> dict[str, str]:
    """Variable -> value for a job on fabric devices ``devices`` (rail order)."""
    values = {
        "all": ",".join(devices),
        "first": devices[0],
        "exact": "=" + ",".join(devices),
    }
    chosen = [item for item in TABLE if not (rdma and item.keeps_from_rdma)]
    return {item.variable: values[item.value] for item in chosen}


def text(variables: dict[str, str]) -> str:
    """The ``env`` file: ``NAME=value`` lines."""
    return "".join(f"{name}={value}\n" for name, value in variables.items())
