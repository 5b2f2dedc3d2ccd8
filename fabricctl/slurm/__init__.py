"""Slurm behind one small typed interface."""
