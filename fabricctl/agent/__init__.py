"""The agent: one process per protected allocation and node."""
