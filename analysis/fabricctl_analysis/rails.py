"""One rail of one node, from its rows to its figures."""

from fabricctl.store import rollups
from fabricctl_analysis.align import Rows
from fabricctl_analysis.counters import Floats, Increments, increments, measured_floats
from fabricctl_analysis.host import peak, total_figure
from fabricctl_analysis.links import link_history
from fabricctl_analysis.model import RailSummary
from fabricctl_analysis.rows import NodeRows, apart_ns, of_rail
from fabricctl_analysis.series import Series, reduce_series

COUNTERS = {
    "rx_bytes": "B",
    "tx_bytes": "B",
    "rx_packets": "packets",
    "tx_packets": "packets",
    "rx_errors": "errors",
    "tx_errors": "errors",
    "rx_dropped": "packets",
    "tx_dropped": "packets",
}


def rail_summary(rows: NodeRows, index: int, longest_ns: int) -> RailSummary:
    """The rail's link, traffic and errors; intervals over ``longest_ns`` are gaps."""
    sample_ns, samples = of_rail(rows, "rail", index)
    event_ns, events = of_rail(rows, "link_event", index)
    apart = apart_ns(samples, sample_ns)
    counted = {name: increments(sample_ns, samples[name], apart) for name in COUNTERS}
    traffic = {"rx": counted["rx_bytes"], "tx": counted["tx_bytes"]}
    tops = {way: _tops(samples, f"{way}_bytes", counter) for way, counter in traffic.items()}
    last_ns = [int(times[-1]) for times in (sample_ns, event_ns) if len(times)]
    lives_ns = [int(at) for at in rows.real_ns["life"]]
    return RailSummary(
        node=rows.name,
        index=index,
        interface=rows.rails[index] if index < len(rows.rails) else "?",
        measured_end_ns=max(last_ns, default=0),
        link=link_history(sample_ns, samples, event_ns, events, lives_ns),
        counters={name: total_figure(counted[name], unit) for name, unit in COUNTERS.items()},
        peaks={
            way: peak(counter.rate_per_s, counter, longest_ns, "B/s", tops[way])
            for way, counter in traffic.items()
        },
        series={way: _series(counter, longest_ns, tops[way]) for way, counter in traffic.items()},
    )


def _tops(samples: Rows, name: str, counter: Increments) -> Floats | None:
    """The highest rates within the intervals of thinned rows."""
    column = rollups.peak(name)
    if column not in (samples.dtype.names or ()) or len(samples) != len(counter.amount) + 1:
        return None
    return measured_floats(samples[column])[1:]


def _series(counter: Increments, longest_ns: int, tops: Floats | None) -> Series:
    return reduce_series(
        counter.begin_ns, counter.end_ns, counter.rate_per_s, longest_ns, counter.longest_ns,
        peaks=tops,
    )  # fmt: skip
