"""Offline: from a trace to a report."""
