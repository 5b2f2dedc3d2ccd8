"""What ``fabricctl path show`` and ``events`` print."""

from collections.abc import Iterable, Mapping
from pathlib import Path

from fabricctl.errors import FabricError, NotFoundError, SystemRefusedError, UsageError
from fabricctl.paths import control
from fabricctl.paths.files import PathsFiles, read_state
from fabricctl.sharing import CLASSES
from fabricctl.units import format_duration


def one(files: PathsFiles, job: int, peer: str | None) -> dict[str, object]:
    """What one job's fabric-pathd says, or why it says nothing."""
    try:
        state = read_state(files.state(job))
    except FabricError as error:
        state = {"state": "unknown", "why": str(error)}
    entry: dict[str, object] = {"job": job, "state": state}
    request = {"do": "show", **({"peer": peer} if peer else {})}
    if state.get("state") in ("ready", "starting"):
        try:
            entry["summary"], *lines = _ask_all(files.control(job), request)
            entry["shares"] = [line for line in lines if "share_rail" in line]
            entry["paths"] = [line for line in lines if "peer" in line]
        except NotFoundError:
            entry["problem"] = "its fabric-pathd does not run; routes are as it left them"
        except UsageError:
            entry["problem"] = f"{peer} is no other node of this job"
        except SystemRefusedError as error:
            entry["problem"] = str(error)  # who is not root sees what files tell
    return entry


def _ask_all(path: Path, request: Mapping[str, str]) -> list[dict[str, str]]:
    """All parts of an answer that one datagram does not hold."""
    lines = control.ask(path, request)
    while following := lines[-1].get("next"):
        lines[-1:] = control.ask(path, {**request, "from": following})[1:]
    return lines


def as_text(entry: Mapping[str, object]) -> str:
    state = entry["state"]
    assert isinstance(state, Mapping)
    head = f"job {entry['job']}: {state['state']}"
    head += f", {state['why']}" if state.get("why") else ""
    head += f", {entry['problem']}" if entry.get("problem") else ""
    lines = [head]
    lines += [f"  rail {key[4:]}  {text}" for key, text in state.items() if key.startswith("rail")]
    shares = entry.get("shares")
    lines += [_share_text(line) for line in shares] if isinstance(shares, list) else []
    paths = entry.get("paths")
    if isinstance(paths, list) and paths:
        lines.append(
            f"  {'peer':16} {'rail':4} {'level':5} {'reason':8} {'carried by':10} "
            f"{'round trip':>10} {'jitter':>8} {'waits':>8} {'lost':>5} traffic"
        )
        lines += [_path_text(path) for path in paths]
    return "\n".join(lines) + "\n"


def _share_text(line: Mapping[str, str]) -> str:
    guarantee, ceiling, now = (int(line[key]) / 10 for key in ("guarantee", "ceiling", "now"))
    slowed = f", slowed to {now:g} %" if now < ceiling else ""
    name = CLASSES[int(line["class"])]
    return (
        f"  rail {line['share_rail']}: {guarantee:g} % guaranteed, at most {ceiling:g} %, "
        f"class {name}{slowed}"
    )


def _path_text(path: Mapping[str, str]) -> str:
    times = ("round_trip_ns", "jitter_ns", "queue_ns")
    trip, jitter, waits = (format_duration(int(path[key]) / 1e9) for key in times)
    pinned = " (moved by hand)" if path["pinned"] == "1" else ""
    pinned += " (round a queue)" if path["away"] == "1" else ""
    traffic = "yes" if path["active"] == "1" else "no"
    return (
        f"  {path['peer']:16} {path['rail']:4} {path['level']:5} {path['reason']:8} "
        f"{'rail ' + path['carried_by']:10} {trip:>10} {jitter:>8} {waits:>8} {path['lost']:>5} "
        f"{traffic}{pinned}"
    )


def event_lines(path: Path) -> Iterable[dict[str, str]]:
    from fabricctl import fields

    try:
        text = path.read_text(errors="replace")
    except OSError as error:
        raise NotFoundError(f"{path}: {error.strerror}") from None
    for line in text.splitlines():
        try:
            yield fields.decode(line, ";")
        except FabricError:
            continue  # the last line may be half written


def event_text(line: Mapping[str, str]) -> str:
    import time

    real_ns = int(line.get("time_real_ns", "0"))
    stamp = time.strftime("%H:%M:%S", time.localtime(real_ns // 10**9))
    rest = {
        key: value
        for key, value in line.items()
        if key not in ("event", "time_mono_ns", "time_real_ns")
        and value not in ("", "none", "-1")
        and (value != "0" or key in ("rail", "carrier", "uid"))  # of these 0 is no "nothing"
    }
    now_ns = int(line.get("time_mono_ns", "0"))
    for key in [key for key in rest if key.endswith("_mono_ns")]:
        ago = format_duration((now_ns - int(rest.pop(key))) / 1e9)
        rest[key.removesuffix("_mono_ns")] = f"{ago} before"
    words = " ".join(f"{key}={value}" for key, value in rest.items())
    return f"{stamp}.{real_ns // 10**6 % 1000:03d}  {line.get('event', '?'):9} {words}"
