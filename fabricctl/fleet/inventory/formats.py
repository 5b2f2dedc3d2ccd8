"""The inventory in the forms that others write and read. Pure: texts in, texts out."""

import csv
import io
import json
from collections.abc import Callable, Mapping
from typing import Any

import yaml

from fabricctl import hostlist
from fabricctl.errors import DataError
from fabricctl.fleet.inventory.collect import checked
from fabricctl.slurm.topology import parse as parse_topology

Values = dict[str, dict[str, str]]  # node -> key -> value

# NetBox's field of a device <-> our key (NetBox REST API, dcim/devices).
_NETBOX = {("serial",): "system.serial", ("device_type", "model"): "system.product",
           ("device_type", "manufacturer", "name"): "system.vendor"}  # fmt: skip
_INTERFACE = {"mac_address": "mac", "mtu": "mtu"}


def read_yaml(text: str) -> Values:
    """``nodes:`` then host lists, each with its keys; a later one goes over an earlier one."""
    try:
        given = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise DataError(
            f"inventory: not valid YAML: {' '.join(str(error).split())[:200]}"
        ) from None
    nodes = given.get("nodes") if isinstance(given, dict) else None
    if not isinstance(nodes, dict):
        raise DataError("inventory: YAML without `nodes:` and host lists below it")
    found: Values = {}
    for names, values in nodes.items():
        flat = dict(_flat(values, "")) if isinstance(values, dict) else values
        for node in hostlist.expand(str(names)):
            found.setdefault(node, {}).update(checked(flat, node))
    return found


def _flat(values: Mapping[str, Any], prefix: str) -> Any:
    """``nic: {r0: {mtu: 9000}}`` is ``nic.r0.mtu``."""
    for key, value in values.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{key}.")
        elif isinstance(value, bool):
            yield f"{prefix}{key}", str(value).lower()
        else:
            yield f"{prefix}{key}", "" if value is None else str(value)


def write_yaml(values: Values) -> str:
    """Nodes that are alike are one entry."""
    groups: dict[tuple[tuple[str, str], ...], list[str]] = {}
    for node, mine in values.items():
        groups.setdefault(tuple(sorted(mine.items())), []).append(node)
    nodes = {hostlist.fold(names): dict(items) for items, names in groups.items()}
    return str(yaml.safe_dump({"nodes": nodes}, sort_keys=False, allow_unicode=True))


def read_csv(text: str) -> Values:
    """Columns node, key, value, with that head; node may be a host list."""
    reader = csv.DictReader(io.StringIO(text))
    try:
        return _from_rows(reader)
    except csv.Error as error:
        raise DataError(f"inventory: not valid CSV: line {reader.line_num}: {error}") from None


def _from_rows(reader: "csv.DictReader[str]") -> Values:
    if reader.fieldnames is None or not {"node", "key", "value"} <= set(reader.fieldnames):
        raise DataError("inventory: CSV without the columns node, key and value")
    found: Values = {}
    for row in reader:
        for node in hostlist.expand(row["node"] or ""):
            key, value = row["key"] or "", (row["value"] or "").removeprefix("'")
            found.setdefault(node, {}).update(checked({key: value}, node))
    return found


def write_csv(values: Values) -> str:
    out = io.StringIO()
    writer = csv.writer(out)
    writer.writerow(("node", "key", "value"))
    for node, mine in values.items():
        for key, value in mine.items():
            # A cell that begins so is a formula to a spreadsheet.
            writer.writerow((node, key, f"'{value}" if value[:1] in "=+-@" and value else value))
    return out.getvalue()


def read_topology(text: str) -> Values:
    """Which leaf switch each node hangs on, from topology.conf."""
    found: Values = {}
    for switch in parse_topology(text):
        if not switch.switches:
            for node in switch.nodes:
                found[node] = {"slurm.switch": switch.name}
    if not found:
        raise DataError("inventory: no SwitchName with Nodes in topology.conf")
    return found


def leaf_switch(facts: Mapping[str, str], interface: str | None = None) -> str | None:
    """What a node hangs on: of an interface by the cable that LLDP saw there, else by
    ``slurm.switch``, else by the first cable."""
    if interface is not None and (cable := facts.get(f"nic.{interface}.cable")):
        return cable.rpartition(":")[0]
    cables = [v.rpartition(":")[0] for k, v in sorted(facts.items()) if k.endswith(".cable")]
    return facts.get("slurm.switch") or next(iter(cables), None)


def write_topology(values: Values) -> str:
    """topology.conf(5) of two levels, from ``slurm.switch`` or the cables that LLDP saw."""
    leaves: dict[str, list[str]] = {}
    lost = []
    for node, mine in values.items():
        leaf = leaf_switch(mine)
        if leaf is None:
            lost.append(node)
        else:
            leaves.setdefault(leaf, []).append(node)
    if not leaves:
        raise DataError("inventory: no node says which switch it hangs on (slurm.switch, LLDP)")
    lines = [f"# {hostlist.fold(lost)}: switch not known"] if lost else []
    lines += [f"SwitchName={leaf} Nodes={hostlist.fold(mine)}" for leaf, mine in leaves.items()]
    if len(leaves) > 1:
        lines.append(f"SwitchName=top Switches={','.join(leaves)}")
    return "\n".join(lines) + "\n"


def write_groups(values: Values) -> str:
    """What nodes fall with (fabricctl/state/groups.py): the switch from ``slurm.switch`` or LLDP,
    the power feed from ``site.power``, else the rack from ``site.rack``, as declared."""
    lines = []
    for node, mine in values.items():
        switch = leaf_switch(mine) or ""
        power = mine.get("site.power") or mine.get("site.rack", "")
        said = {"switch": "_".join(switch.split()), "power": "_".join(power.split())}
        words = [f"{level}={group}" for level, group in said.items() if group]
        if words:
            lines.append(f"{node} {' '.join(words)}")
    if not lines:
        raise DataError("inventory: no node says what it falls with (slurm.switch, site.power)")
    return "\n".join(lines) + "\n"


def read_netbox(text: str) -> Values:
    """A list of devices as NetBox's API gives them, or its ``{"results": [...]}``."""
    try:
        given = json.loads(text)
        devices = given["results"] if isinstance(given, dict) else given
        found: Values = {}
        for device in devices:
            node = hostlist.expand(device["name"])[0]
            mine = {}
            for path, key in _NETBOX.items():
                value: Any = device
                for step in path:
                    value = value.get(step) if isinstance(value, dict) else None
                if value:
                    mine[key] = str(value)
            for port in device.get("interfaces", []):
                for field, key in _INTERFACE.items():
                    if port.get(field):
                        value = str(port[field])
                        mine[f"nic.{port['name']}.{key}"] = value.lower()
                if port.get("speed"):  # NetBox has kbit/s
                    mine[f"nic.{port['name']}.speed_mbit"] = str(int(port["speed"]) // 1000)
            mine |= device.get("custom_fields", {}).get("fabricctl", None) or {}
            found[node] = checked(mine, node)
    except (ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        raise DataError(f"inventory: not devices as NetBox gives them: {error!r}") from None
    return found


def write_netbox(values: Values) -> str:
    """Devices in NetBox's shape; what it has no field for is in ``custom_fields.fabricctl``."""
    devices = []
    for node, mine in values.items():
        left = dict(mine)
        device: dict[str, Any] = {"name": node}
        for path, key in _NETBOX.items():
            if key in left:
                place = device
                for step in path[:-1]:
                    place = place.setdefault(step, {})
                place[path[-1]] = left.pop(key)
        ports: dict[str, dict[str, Any]] = {}
        for key in [key for key in left if key.startswith("nic.") and key.count(".") == 2]:
            _, name, what = key.split(".")
            field = next((f for f, ours in _INTERFACE.items() if ours == what), None)
            if field:
                value: Any = left.pop(key)
                ports.setdefault(name, {})[field] = int(value) if field == "mtu" else value
            elif what == "speed_mbit":
                ports.setdefault(name, {})["speed"] = int(left.pop(key)) * 1000
        device["interfaces"] = [{"name": name, **port} for name, port in ports.items()]
        device["custom_fields"] = {"fabricctl": left}
        devices.append(device)
    return json.dumps(devices, indent=1) + "\n"


READERS: Mapping[str, Callable[[str], Values]] = {
    "yaml": read_yaml, "csv": read_csv, "topology": read_topology, "netbox": read_netbox,
}  # fmt: skip
WRITERS: Mapping[str, Callable[[Values], str]] = {
    "yaml": write_yaml, "csv": write_csv, "topology": write_topology, "netbox": write_netbox,
    "groups": write_groups,
}  # fmt: skip
