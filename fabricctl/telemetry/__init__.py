"""What the agent samples: one source a file."""
