"""CPU, memory and pressure of a node and of the job on it."""

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from fabricctl.store import dtypes, rollups
from fabricctl_analysis.align import Ns, Rows
from fabricctl_analysis.counters import Increments, increments, measured_floats
from fabricctl_analysis.model import Figure
from fabricctl_analysis.rows import NOT_KNOWN_NS, NodeRows, apart_ns
from fabricctl_analysis.series import Floats, Series, as_intervals, reduce_series

# iowait may go back by itself (proc(5)); with idle it does not.
_IDLE = ("idle", "iowait")
PRESSURES = ("cpu_some", "memory_some", "memory_full", "io_some", "io_full")
_NM = np.iinfo(np.uint64).max


def host_figures(rows: NodeRows, longest_ns: int) -> tuple[dict[str, Figure], dict[str, Series]]:
    """Figures and series of the tables ``host`` and ``job``.

    Series: ``cpu`` and ``job_cpu`` in cores, ``memory`` and ``job_memory`` in bytes.
    """
    figures: dict[str, Figure] = {}
    series: dict[str, Series] = {}
    _cpu(rows, longest_ns, figures, series)
    _memory(rows, longest_ns, figures, series)
    _job(rows, longest_ns, figures, series)
    _pressure(rows, figures)
    return figures, series


def _cpu(
    rows: NodeRows, longest_ns: int, figures: dict[str, Figure], series: dict[str, Series]
) -> None:
    times, host = rows.real_ns["host"], rows.tables["host"]
    all_ns, idle_ns = cpu_time(host, rollups.BUSY + _IDLE), cpu_time(host, _IDLE)
    apart = apart_ns(host, times)
    total = increments(times, all_ns, apart)
    idle = increments(times, np.where(all_ns == _NM, _NM, idle_ns), apart)
    figures["cores"] = cores = _cores(total)
    # Of the CPU time that passed, not of the clock's: the two are read a little apart.
    share = np.full(len(total.amount), np.nan)
    np.divide(idle.amount, total.amount, out=share, where=total.amount > 0)
    used = (1 - share.clip(0, 1)) * (cores.value or np.nan)
    figures["cpu_mean"] = _weighted(used, total, "cores")
    tops = _extreme(host, rollups.peak("cpu_busy"))
    if tops is not None:
        tops = np.minimum(tops * 1e-9, cores.value or np.nan)
    figures["cpu_max"] = peak(used, total, longest_ns, "cores", tops)
    series["cpu"] = reduce_series(
        total.begin_ns, total.end_ns, used, longest_ns, total.longest_ns, peaks=_fit(tops, used)
    )


def _cores(total: Increments) -> Figure:
    """CPU time passes as many times faster than the clock as there are cores."""
    mean = _mean(total, "cores")
    return mean if mean.value is None else replace(mean, value=float(round(mean.value)))


def _memory(
    rows: NodeRows, longest_ns: int, figures: dict[str, Figure], series: dict[str, Series]
) -> None:
    times, host = rows.real_ns["host"], rows.tables["host"]
    total = measured_floats(host["memory_total_bytes"])
    used = total - measured_floats(host["memory_available_bytes"])
    least = _extreme(host, rollups.lowest("memory_available_bytes"))
    most = used if least is None else total - least
    apart = apart_ns(host, times)
    figures["memory_total"] = gauge(total, "B")
    figures["memory_max"] = gauge(most, "B")
    series["memory"] = reduce_series(
        *as_intervals(times, used), longest_ns, None if apart is None else apart[1:], peaks=most[1:]
    )


def _job(
    rows: NodeRows, longest_ns: int, figures: dict[str, Figure], series: dict[str, Series]
) -> None:
    times, job = _while_it_lived(rows.real_ns["job"], rows.tables["job"])
    apart = apart_ns(job, times)
    cpu = increments(times, job["cpu_ns"], apart)
    figures["job_cpu"] = _so_far(job["cpu_ns"], cpu)
    figures["job_cpu_mean"] = _mean(cpu, "cores")
    series["job_cpu"] = reduce_series(
        cpu.begin_ns, cpu.end_ns, cpu.rate_per_s / 1e9, longest_ns, cpu.longest_ns
    )
    memory = measured_floats(job["memory_bytes"])
    most = _extreme(job, rollups.highest("memory_bytes"))
    figures["job_memory_max"] = gauge(memory if most is None else most, "B")
    figures["job_processes_max"] = gauge(measured_floats(job["processes"]), "processes")
    series["job_memory"] = reduce_series(
        *as_intervals(times, memory), longest_ns, None if apart is None else apart[1:]
    )


def _while_it_lived(times: Ns, job: Rows) -> tuple[Ns, Rows]:
    """Without the rows after the job's last process: its counter is gone, not reset."""
    counted = np.where(job["cpu_ns"] == _NM, 0, job["cpu_ns"])
    over = (job["processes"] == 0) & (counted < np.maximum.accumulate(counted))
    return times[~over], job[~over]


def _pressure(rows: NodeRows, figures: dict[str, Figure]) -> None:
    for name in PRESSURES:
        stalled = increments(rows.real_ns["host"], rows.tables["host"][f"psi_{name}_us"])
        figures[f"psi_{name}"] = total_figure(stalled, "s", 1e-6)


def cpu_time(rows: Rows, names: tuple[str, ...]) -> NDArray[np.uint64]:
    return dtypes.summed([rows[f"cpu_{name}_ns"] for name in names])


def _extreme(rows: Rows, column: str) -> Floats | None:
    """What thinned rows say of the rows that were left out."""
    return measured_floats(rows[column]) if column in (rows.dtype.names or ()) else None


def _fit(tops: Floats | None, values: Floats) -> Floats | None:
    """For intervals, of which there is one less than rows; None when readings were left out."""
    return tops[1:] if tops is not None and len(tops) == len(values) + 1 else None


def total_figure(counter: Increments, unit: str, factor: float = 1.0) -> Figure:
    """What a counter grew by."""
    value = counter.total * factor
    known = int((~np.isnan(counter.amount)).sum())
    return Figure(
        None if np.isnan(value) else value,
        unit,
        known + bool(known),
        counter.not_measured,
        at_least=counter.resets > 0,
    )


def gauge(values: Floats, unit: str) -> Figure:
    """The highest value of a gauge."""
    known = values[~np.isnan(values)]
    highest = float(known.max()) if len(known) else None
    return Figure(highest, unit, len(known), len(values) - len(known))


def _so_far(readings: NDArray[np.uint64], counter: Increments) -> Figure:
    """A counter that began with the job: its highest reading, a lower bound once it went back."""
    values = measured_floats(readings)
    return replace(gauge(values * 1e-9, "s"), at_least=counter.resets > 0)


def _mean(counter: Increments, unit: str) -> Figure:
    """Mean rate over the time in which the counter's growth is known, in ns a ns."""
    length_ns = (counter.end_ns - counter.begin_ns).astype(np.float64)
    return _weighted(counter.amount / length_ns, counter, unit)


def _weighted(values: Floats, counter: Increments, unit: str) -> Figure:
    """Mean over time of values that hold for the counter's intervals."""
    known = ~np.isnan(values) & (counter.longest_ns < NOT_KNOWN_NS)
    length_ns = (counter.end_ns - counter.begin_ns)[known].astype(np.float64)
    value = float(np.average(values[known], weights=length_ns)) if known.any() else None
    return Figure(value, unit, int(known.sum()), counter.not_measured)


def peak(
    values: Floats, counter: Increments, longest_ns: int, unit: str, tops: Floats | None = None
) -> Figure:
    """The highest rate over one interval between samples; gaps hide theirs and do not count.
    ``tops``: of thinned rows, the highest within each."""
    if tops is None:
        tops = values[counter.longest_ns <= longest_ns]
    known = tops[~np.isnan(tops)]
    highest = float(known.max()) if len(known) else None
    return Figure(highest, unit, len(known), counter.not_measured)


def own_cost(rows: NodeRows) -> tuple[float | None, int | None]:
    """What the agent itself took: cores, and bytes at most."""
    table, times = rows.tables["reading"], rows.real_ns["reading"]
    mine = table["source"] == b"agent"
    cpu = mine & (table["figure"] == b"cpu_ms")
    memory = table["value"][mine & (table["figure"] == b"memory_kib")]
    cores = None
    if cpu.sum() >= 2:
        took_ms = float(table["value"][cpu][-1]) - float(table["value"][cpu][0])
        passed_ns = int(times[cpu][-1] - times[cpu][0])
        cores = took_ms * 1e6 / passed_ns if passed_ns > 0 and took_ms >= 0 else None
    held = int(min(memory.max(), 1 << 40)) << 10 if len(memory) else None
    return cores, held
