"""``fabricctl job show``: what is known of a job, running or ended."""

import json
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from fabricctl import hostlist
from fabricctl.errors import FabricError, NotFoundError
from fabricctl.slurm.model import Job, Slurm, Step
from fabricctl.units import format_duration

JSON_VERSION = 1


@click.command()
@click.argument("job", metavar="JOB")
@click.option("--json", "as_json", is_flag=True, help="For scripts; see docs/administration.md.")
def command(job: str, as_json: bool) -> None:
    """What Slurm knows of a job, its steps, and what its trace says of it when it has ended."""
    from fabricctl import layout
    from fabricctl.cli import find_trace
    from fabricctl.slurm.choose import open_slurm

    number = layout.job_number(job)
    trace: Path | None = None
    why_not = ""
    try:
        trace = find_trace.find(job)
    except FabricError as error:
        why_not = str(error).removeprefix(f"job {number}: ")
    slurm = open_slurm()
    known, steps = _ask(slurm, number)
    if known is None and trace is None:
        raise NotFoundError(
            f"job {number}: the controller does not know it (any more), and it left no trace "
            f"that you may read: see sacct -j {number}"
        )
    said = _trace_facts(trace) if trace else None
    if as_json:
        click.echo(
            json.dumps(
                {
                    "version": JSON_VERSION,
                    "job": None if known is None else asdict(known),
                    "steps": [asdict(step) for step in steps],
                    "trace": said,
                    "no_trace": why_not or None,
                }
            )
        )
        return
    if known is not None:
        _print_job(known, steps)
    if said is None:
        click.echo(f"Trace: {why_not}")
        return
    click.echo(f"Trace: {said['path']}")
    click.echo(f"  mode {said['mode'] or '?'}, measured {said['measured']} of {said['of']} nodes")
    for finding in said["findings"]:
        click.echo(f"  {finding}")
    click.echo(f"  see: fabricctl report {number}, fabricctl job events {number}")


def _ask(slurm: Slurm, number: int) -> tuple[Job | None, tuple[Step, ...]]:
    try:
        job = slurm.job(number)
    except NotFoundError:
        return None, ()
    try:
        return job, slurm.steps(number)
    except NotFoundError:  # it was forgotten between the two questions
        return job, ()


def _print_job(job: Job, steps: tuple[Step, ...]) -> None:
    name = "".join(char if char.isprintable() else "?" for char in job.name)
    array = f" (task {job.array_task} of array {job.array_job})" if job.array_job else ""
    click.echo(f"Job {job.id}{array}: {name}")
    account = f", account {job.account}" if job.account else ""
    click.echo(f"  {job.user}{account}, partition {','.join(job.partitions)}")
    state = job.state.lower() + (f" ({job.reason})" if job.reason else "")
    if job.start_real_s is not None:
        end_s = job.end_real_s if job.end_real_s is not None else time.time()
        ran = format_duration(max(0.0, end_s - job.start_real_s))
        state += (
            f", began {_clock(job.start_real_s)}, {'ran' if job.finished else 'runs for'} {ran}"
        )
    elif job.submit_real_s is not None:
        state += f", submitted {_clock(job.submit_real_s)}"
    click.echo(f"  {state}")
    if job.exit_status or job.exit_signal:
        signal = f", signal {job.exit_signal}" if job.exit_signal else ""
        click.echo(f"  exit status {job.exit_status}{signal}")
    limit = "no limit" if job.time_limit_s is None else f"limit {format_duration(job.time_limit_s)}"
    where = f"{job.node_count} nodes"
    if job.nodes:
        where = f"{len(job.nodes)} node{'s' if len(job.nodes) > 1 else ''} "
        where += hostlist.fold(job.nodes)
    click.echo(f"  {where}, {job.cpus} CPUs, {limit}, {job.restarts} requeues")
    for step in steps:
        label = "".join(char if char.isprintable() else "?" for char in step.name)
        click.echo(
            f"  step {step.step}: {label}, {step.tasks} tasks on {hostlist.fold(step.nodes)}"
        )


def _trace_facts(path: Path) -> dict[str, Any]:
    """Read in a child: a trace is its user's, and may be anything."""
    from fabricctl_analysis.guard import Limits, guarded

    def work() -> dict[str, str]:
        from fabricctl_analysis.build import report_of
        from fabricctl_analysis.findings import findings
        from fabricctl_analysis.when import When

        report = report_of(path)
        found = findings(report, When(report.whole))
        unmeasured = [one.nodes for one in report.unmeasured if one.what == "everything"]
        missing = {node for nodes in unmeasured for node in nodes}
        facts = {
            "path": str(path),
            "mode": report.job.mode,
            "of": len(report.job.nodes),
            "measured": len(set(report.job.nodes) - missing),
            "findings": [one.text for one in found if one.severity != "info"],
        }
        return {"facts": json.dumps(facts)}

    facts: dict[str, Any] = json.loads(guarded(path, work, Limits.of(path))["facts"])
    return facts


def _clock(real_s: int) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(real_s))
