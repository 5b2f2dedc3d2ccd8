"""The MPI tracker: ``track.c`` writes a rank's block, the modules here read it.

docs/tracker.md has the block and what is made of it.
"""
