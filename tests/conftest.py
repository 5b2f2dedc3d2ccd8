"""What holds for every tier; also read by the old pytest of the chroots."""

import pytest


def pytest_terminal_summary(terminalreporter: "pytest.TerminalReporter") -> None:
    """Why a test was tried once more: each is a fault to be found, in it or in the product."""
    for report in terminalreporter.stats.get("rerun", []):
        terminalreporter.section(f"tried once more: {report.nodeid}", sep="_")
        terminalreporter.line(report.longreprtext[-20000:])
