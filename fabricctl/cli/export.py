"""``fabricctl export``: a job's trace for other tools."""

import base64
from pathlib import Path

import click


@click.command()
@click.argument("job", metavar="JOB")
@click.option("--parquet", type=click.Path(file_okay=False, path_type=Path), metavar="DIR",
              help="One Parquet file a table (needs pyarrow).")  # fmt: skip
@click.option("--openmetrics", type=click.Path(dir_okay=False, path_type=Path), metavar="FILE",
              help="OpenMetrics text, for Prometheus.")  # fmt: skip
@click.option("--every", is_flag=True,
              help="Every sample, where a long trace would be given by the minute.")  # fmt: skip
@click.option("--limits/--no-limits", default=True, help="As of `fabricctl report`.")
def command(
    job: str, *, parquet: Path | None, openmetrics: Path | None, every: bool, limits: bool
) -> None:
    """Write the samples of JOB (as `fabricctl report` takes it) in another form.

    For pandas: `fabricctl_analysis.load.load(file)`; with plain h5py: docs/data-format.md.
    """
    from fabricctl.cli import find_trace
    from fabricctl.cli.report import write_file
    from fabricctl.errors import SystemRefusedError, UsageError
    from fabricctl_analysis.guard import NO_LIMITS, Limits, guarded

    if parquet is None and openmetrics is None:
        raise UsageError("export: name a form: --parquet DIR or --openmetrics FILE")
    path = find_trace.find(job)
    bounds = Limits.of(path) if limits else NO_LIMITS
    if openmetrics is not None:

        def text() -> dict[str, str]:
            from fabricctl_analysis import export

            return export.openmetrics(path, every)

        write_file(openmetrics, guarded(path, text, bounds)["openmetrics"].encode())
    if parquet is not None:

        def files() -> dict[str, str]:
            from fabricctl_analysis import export

            return export.parquet(path, every)

        tables = guarded(path, files, bounds)
        try:
            parquet.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise SystemRefusedError(f"{parquet}: cannot be made: {error.strerror}") from None
        for name, content in tables.items():
            write_file(parquet / f"{name}.parquet", base64.b64decode(content))
