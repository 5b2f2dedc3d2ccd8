"""What holds for every tier."""

from collections.abc import Iterator

import pytest


@pytest.hookimpl(wrapper=True)
def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> Iterator[None]:
    """Why a test was tried once more: each is a fault to be found, in it or in the product."""
    yield
    for report in terminalreporter.stats.get("rerun", []):
        terminalreporter.section(f"tried once more: {report.nodeid}", sep="_")
        terminalreporter.line(report.longreprtext[-6000:])
