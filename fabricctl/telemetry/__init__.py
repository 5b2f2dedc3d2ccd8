"""What is measured on a node: one source a file, all behind :class:`fabricctl.telemetry.source`."""
