"""Networks of a lab: one bridge in a namespace of its own for management and for each rail.

::

    node n1                 namespace sw-r0
    r0 ------- veth ------- n1 --+
                                 br0
    r0 ------- veth ------- n2 --+
    node n2

A node's interfaces and the switches' ports live in namespaces that are pinned by a mount: they
survive the death of any process, as hardware survives the death of a node.
"""

import errno
from pathlib import Path

from fabricctl.errors import SystemRefusedError
from fabricctl.lab import tc
from fabricctl.lab.kernel import in_netns, is_mount, pin_new_netns
from fabricctl.lab.rtnl import Rtnl
from fabricctl.lab.spec import LabPaths, LabSpec

BRIDGE = "br0"


def wire(spec: LabSpec, paths: LabPaths) -> None:
    """Makes what is missing of namespaces, bridges, links and addresses; touches nothing else."""
    paths.net.mkdir(exist_ok=True)
    for node in spec.all_nodes:
        _namespace(paths.node_netns(node))
    for interface in spec.interfaces:
        _wire_switch(spec, paths, interface)


def _namespace(path: Path) -> None:
    if not is_mount(path):
        pin_new_netns(path)
    with Rtnl(path) as net:  # also in one whose maker was killed right after
        net.set_up(net.links()["lo"].index, True)


def _wire_switch(spec: LabSpec, paths: LabPaths, interface: str) -> None:
    switch = paths.switch_netns(interface)
    _namespace(switch)
    with in_netns(switch):
        # A switch speaks no IPv6 of its own: no router solicitations on the nodes' links.
        _write_sysctl("net/ipv6/conf/default/disable_ipv6", "1")
        _write_sysctl("net/ipv6/conf/all/disable_ipv6", "1")
    with Rtnl(switch) as net:
        links = net.links()
        if BRIDGE not in links:
            net.add_bridge(BRIDGE)
            links = net.links()
        net.set_up(links[BRIDGE].index, True)
        for node in spec.all_nodes:
            if node not in links:
                peer = paths.node_netns(node)
                net.add_veth(node, interface, peer, max_segments=spec.max_segments(interface))
        links = net.links()
        for node in spec.all_nodes:
            tc.make_hooks(net, links[node].index)
            if links[node].master == 0:
                net.set_master(links[node].index, links[BRIDGE].index)
            net.set_up(links[node].index, True)
    for node in spec.all_nodes:
        with Rtnl(paths.node_netns(node)) as net:
            index = net.links()[interface].index
            net.add_address(index, spec.address(node, interface), 16)
            net.set_up(index, True)


def _write_sysctl(name: str, value: str) -> None:
    try:
        # Below net/ procfs shows the network namespace of the thread that opens.
        Path("/proc/sys", name).write_text(value)
    except OSError as error:
        if error.errno not in (errno.ENOENT, errno.EROFS):
            raise SystemRefusedError(f"sysctl {name}: {error.strerror}") from None
