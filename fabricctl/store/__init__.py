"""Traces: the schema, the agent's journal, and HDF5."""
