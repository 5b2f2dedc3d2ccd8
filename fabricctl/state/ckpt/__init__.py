"""Checkpoints in the memory of keepers: on the node itself and on partner nodes."""
