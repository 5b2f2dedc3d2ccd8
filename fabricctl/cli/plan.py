"""``fabricctl plan``: what failures will do to a job, and what checkpoints and spares save."""

import json
import math
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from fabricctl_analysis.plan_model import Job, Rate


@click.command()
@click.option("--nodes", type=click.IntRange(min=1), required=True, help="Of the job.")
@click.option("--hours", type=click.FloatRange(min=0, min_open=True), required=True,
              help="Of work, without any failure.")  # fmt: skip
@click.option("--checkpoint-s", type=click.FloatRange(min=0), default=120.0, show_default=True,
              help="That the job stands still for a checkpoint.")  # fmt: skip
@click.option("--restart-s", type=click.FloatRange(min=0), default=900.0, show_default=True,
              help="From a failure until the job computes again: queue, start, load.")  # fmt: skip
@click.option("--interval-s", type=click.FloatRange(min=0, min_open=True),
              help="Between checkpoints; default the best.")  # fmt: skip
@click.option("--failures", type=click.IntRange(min=0),
              help="Seen on your cluster in --node-hours.")  # fmt: skip
@click.option("--node-hours", type=click.FloatRange(min=0, min_open=True),
              help="In which --failures were seen.")  # fmt: skip
@click.option("--rate", "rate_name", default="llama3", show_default=True,
              help="A published rate, without --failures: llama3, llama3-hardware.")  # fmt: skip
@click.option("--fast-checkpoint-s", type=click.FloatRange(min=0), default=2.0, show_default=True,
              help="The same into the memory of other nodes.")  # fmt: skip
@click.option("--fast-restart-s", type=click.FloatRange(min=0), default=60.0, show_default=True,
              help="The same onto a spare node of the allocation.")  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="For scripts.")
def command(
    *,
    nodes: int,
    hours: float,
    checkpoint_s: float,
    restart_s: float,
    interval_s: float | None,
    failures: int | None,
    node_hours: float | None,
    rate_name: str,
    fast_checkpoint_s: float,
    fast_restart_s: float,
    as_json: bool,
) -> None:
    """Expected failures, the best time between checkpoints, spare nodes, and how much of the time
    goes into the work: requeued as usual, and restarted inside the allocation.

    Each figure has an interval of 95 % confidence, from how many failures its rate rests on.
    """
    from fabricctl_analysis.plan_model import Job

    rate = _rate(failures, node_hours, rate_name)
    work_s = hours * 3600
    jobs = {
        "requeued": Job(nodes, work_s, checkpoint_s, restart_s),
        "in the allocation": Job(nodes, work_s, fast_checkpoint_s, fast_restart_s),
    }
    rows = {name: _figures(job, rate, interval_s) for name, job in jobs.items()}
    if as_json:
        document = {"format": "fabricctl-plan", "version": 1, "nodes": nodes, "work_s": work_s,
                    "rate": rate.name, "rate_source": rate.source, "plans": rows}  # fmt: skip
        click.echo(json.dumps(document, indent=1))
        return
    low, high = (1000 * 24 * bound for bound in rate.bounds())
    click.echo(
        f"{nodes} nodes, {hours:g} h of work. {rate.source}:\n"
        f"{1000 * 24 * rate.per_node_hour:.3g} ({low:.3g} to {high:.3g}) failures in 1,000 "
        "node-days.\n"
    )
    click.echo(f"{'':30}{'requeued':>26}{'in the allocation':>26}")
    for name, unit in (("failures", ""), ("mtbf_h", "h"), ("interval_s", "s"), ("wall_h", "h"),
                       ("goodput", "%"), ("spares", "")):  # fmt: skip
        cells = "".join(f"{_cell(rows[way][name], unit):>26}" for way in rows)
        click.echo(f"{_WORDS[name]:30}{cells}")
    slow, fast = (rows[way]["wall_h"][0] for way in rows)
    if slow is not None and fast is not None:
        click.echo(f"\nSaved: {nodes * (slow - fast):,.0f} node-h, {slow - fast:.1f} h of the job.")


_WORDS = {
    "failures": "failures until it is done",
    "mtbf_h": "time between failures",
    "interval_s": "time between checkpoints",
    "wall_h": "time until it is done",
    "goodput": "share that goes into the work",
    "spares": "spares that suffice (95 %)",
}
_Figure = tuple[float | None, float | None, float | None]


def _rate(failures: int | None, node_hours: float | None, name: str) -> "Rate":
    from fabricctl.errors import UsageError
    from fabricctl_analysis.plan_model import PUBLISHED, Rate

    if (failures is None) != (node_hours is None):
        raise UsageError("plan: --failures and --node-hours go together")
    if failures is not None and node_hours is not None:
        return Rate("given", failures, node_hours, f"{failures} failures in {node_hours:g} node-h")
    known = {rate.name: rate for rate in PUBLISHED}
    if name not in known:
        raise UsageError(f"plan: --rate {name[:40]!r}: known are {', '.join(known)}")
    return known[name]


def _figures(job: "Job", rate: "Rate", interval_s: float | None) -> dict[str, _Figure]:
    """Each at the rate itself, and at both ends of its interval."""
    from fabricctl_analysis.plan_model import expected

    made = [expected(job, each, interval_s) for each in (rate.per_node_hour, *rate.bounds())]
    rows = {
        "failures": [one.failures for one in made],
        "mtbf_h": [one.mtbf_s / 3600 for one in made],
        "interval_s": [one.interval_s for one in made],
        "wall_h": [one.wall_s / 3600 for one in made],
        "goodput": [100 * one.goodput(job) for one in made],
        "spares": [float(one.spares) for one in made],
    }
    return {name: _finite(values) for name, values in rows.items()}


def _finite(values: list[float]) -> _Figure:
    best, low, high = (value if math.isfinite(value) else None for value in values)
    if low is not None and high is not None and low > high:
        low, high = high, low
    return best, low, high


def _digits(value: float) -> str:
    return f"{value:,.0f}" if value >= 1000 else f"{value:.3g}"


def _cell(figure: _Figure, unit: str) -> str:
    if figure[0] is None:
        return "never"
    best, low, high = ("never" if value is None else _digits(value) for value in figure)
    text = best if low == high == best else f"{best} ({low} to {high})"
    return f"{text} {unit}".rstrip()
