"""Is a node fit to be handed to users: checks with limits, and a verdict that repeats."""
