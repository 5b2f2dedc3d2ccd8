"""Queues and packet filters on a switch's ports, by rtnetlink.

The kernels we meet lack netem, police and matchall; what is there everywhere is TBF, clsact,
classic BPF (cls_bpf), mirred and ifb. Layouts: linux/pkt_sched.h, linux/pkt_cls.h,
tc_act/tc_mirred.h.
"""

import errno
import struct
from dataclasses import dataclass

from fabricctl.errors import SystemRefusedError
from fabricctl.lab.rtnl import (
    NLM_F_CREATE,
    NLM_F_REPLACE,
    Rtnl,
    attribute,
    nested,
    text,
    u32,
)

_TCMSG = struct.Struct("=BxxxiIII")
_RTM_NEWQDISC, _RTM_DELQDISC, _RTM_NEWTFILTER, _RTM_DELTFILTER = 36, 37, 44, 45
_TCA_KIND, _TCA_OPTIONS = 1, 2
_TC_H_ROOT, _TC_H_CLSACT = 0xFFFF_FFFF, 0xFFFF_FFF1
INGRESS, EGRESS = 0xFFFF_FFF2, 0xFFFF_FFF3  # TC_H_CLSACT's two hooks
_ETH_P_ALL = 0x0300  # ETH_P_ALL in network order

_TCA_TBF_PARMS, _TCA_TBF_BURST = 1, 6
_TCA_TBF_RATE64 = 4
_LINKLAYER_ETHERNET = 1

_TCA_BPF_ACT, _TCA_BPF_OPS_LEN, _TCA_BPF_OPS, _TCA_BPF_FLAGS = 1, 4, 5, 8
_TCA_BPF_FLAG_ACT_DIRECT = 1
_TCA_ACT_KIND, _TCA_ACT_OPTIONS, _TCA_MIRRED_PARMS, _TCA_EGRESS_REDIR = 1, 2, 2, 1
_TC_ACT_UNSPEC, _TC_ACT_SHOT, _TC_ACT_STOLEN = 0xFFFF_FFFF, 2, 4

# Classic BPF, linux/filter.h: load the length, load an ancillary word, jump, return.
_LD_LEN, _LD_ABS_W, _JGT, _JGE, _RET = 0x80, 0x20, 0x25, 0x35, 0x06
_RANDOM = 0xFFFF_F000 + 56  # SKF_AD_OFF + SKF_AD_RANDOM
ETHERNET_HEADER = 14  # part of the length that a filter on a port sees

Instruction = tuple[int, int, int, int]


@dataclass(frozen=True, order=True)
class Drop:
    """Packets to lose: of those longer than ``above`` bytes (IP), a share of ``percent``."""

    percent: float = 100.0
    above: int = 0


def program(drops: tuple[Drop, ...]) -> list[Instruction]:
    """A classic BPF program that drops what any of ``drops`` says and leaves the rest alone.

    >>> program((Drop(above=1000),))
    [(128, 0, 0, 0), (37, 0, 1, 1014), (6, 0, 0, 2), (6, 0, 0, 4294967295)]
    """
    code: list[Instruction] = []
    for drop in drops:
        lossy = drop.percent < 100
        if drop.above:
            code.append((_LD_LEN, 0, 0, 0))
            code.append((_JGT, 0, 3 if lossy else 1, drop.above + ETHERNET_HEADER))
        if lossy:
            code.append((_LD_ABS_W, 0, 0, _RANDOM))
            code.append((_JGE, 1, 0, round(drop.percent / 100 * 2**32)))
        code.append((_RET, 0, 0, _TC_ACT_SHOT))
    return [*code, (_RET, 0, 0, _TC_ACT_UNSPEC)]


def make_hooks(net: Rtnl, port: int) -> None:
    """Where a port's filters go.

    While they are made the kernel stops the port, for milliseconds on a busy machine: to be done
    before the port is used, or its first fault would begin twice.
    """
    body = _tcmsg(port, _TC_H_CLSACT, 0xFFFF_0000, 0) + text(_TCA_KIND, "clsact")
    try:
        net.request(_RTM_NEWQDISC, body, NLM_F_CREATE, "add clsact")
    except SystemRefusedError as error:
        if not _is(error, errno.EEXIST):
            raise


def set_drops(net: Rtnl, port: int, hook: int, drops: tuple[Drop, ...]) -> None:
    """Makes ``drops`` what a port loses on one hook; an empty tuple loses nothing."""
    if not drops:
        _forgiving(net, _RTM_DELTFILTER, _tcmsg(port, hook, 1, _filter_info(1)), "delete filter")
        return
    flags = u32(_TCA_BPF_FLAGS, _TCA_BPF_FLAG_ACT_DIRECT)
    _put_filter(net, port, hook, 1, _bpf(program(drops)) + flags)


def set_rate(net: Rtnl, device: int, rate_bit_per_s: int) -> None:
    """A queue in front of ``device`` that drains at a rate; 0 takes it away.

    10 ms of queue: what a shallow switch has at 10 to 100 Gbit/s, scaled to the lab's rates.
    """
    if rate_bit_per_s == 0:
        _forgiving(net, _RTM_DELQDISC, _tcmsg(device, _TC_H_ROOT, 0, 0), "delete queue")
        return
    rate = rate_bit_per_s // 8
    limit = max(rate // 100, 48_000)  # at least 32 full packets
    # Half a millisecond of tokens: timers on a busy virtual machine come late by that much, and
    # tokens beyond the burst are lost (a burst of one packet saturates far below its rate).
    burst = max(rate // 2000, 6_000)
    ratespec = struct.pack("=BBHhHI", 0, _LINKLAYER_ETHERNET, 0, 0, 0, min(rate, 0xFFFF_FFFF))
    parms = ratespec + bytes(12) + struct.pack("=III", limit, 0, 0)
    options = attribute(_TCA_TBF_PARMS, parms) + u32(_TCA_TBF_BURST, burst)
    options += attribute(_TCA_TBF_RATE64, struct.pack("=Q", rate))
    body = _tcmsg(device, _TC_H_ROOT, 0x0001_0000, 0)
    body += text(_TCA_KIND, "tbf") + nested(_TCA_OPTIONS, options)
    net.request(_RTM_NEWQDISC, body, NLM_F_CREATE | NLM_F_REPLACE, "add queue")


def set_detour(net: Rtnl, port: int, via: int) -> None:
    """What comes in on ``port`` first goes through the device ``via``; 0: straight on."""
    if via == 0:
        body = _tcmsg(port, INGRESS, 1, _filter_info(2))
        _forgiving(net, _RTM_DELTFILTER, body, "delete detour")
        return
    parms = struct.pack("=IIiiiiI", 0, 0, _TC_ACT_STOLEN, 0, 0, _TCA_EGRESS_REDIR, via)
    options = nested(_TCA_ACT_OPTIONS, attribute(_TCA_MIRRED_PARMS, parms))
    action = nested(_TCA_BPF_ACT, nested(1, text(_TCA_ACT_KIND, "mirred"), options))
    everything = _bpf([(_RET, 0, 0, 0xFFFF_FFFF)])
    _put_filter(net, port, INGRESS, 2, everything + action)


def _put_filter(net: Rtnl, port: int, hook: int, priority: int, options: bytes) -> None:
    body = _tcmsg(port, hook, 1, _filter_info(priority))
    body += text(_TCA_KIND, "bpf") + nested(_TCA_OPTIONS, options)
    net.request(_RTM_NEWTFILTER, body, NLM_F_CREATE | NLM_F_REPLACE, "add filter")


def _bpf(code: list[Instruction]) -> bytes:
    ops = b"".join(struct.pack("=HBBI", *instruction) for instruction in code)
    return attribute(_TCA_BPF_OPS_LEN, struct.pack("=H", len(code))) + attribute(_TCA_BPF_OPS, ops)


def _forgiving(net: Rtnl, kind: int, body: bytes, what: str) -> None:
    """A deletion of what may not be there."""
    try:
        net.request(kind, body, 0, what)
    except SystemRefusedError as error:
        if not _is(error, errno.ENOENT, errno.EINVAL):
            raise


def _is(error: SystemRefusedError, *codes: int) -> bool:
    return isinstance(error.__cause__, OSError) and error.__cause__.errno in codes


def _tcmsg(device: int, parent: int, handle: int, info: int) -> bytes:
    return _TCMSG.pack(0, device, handle, parent, info)


def _filter_info(priority: int) -> int:
    return priority << 16 | _ETH_P_ALL
