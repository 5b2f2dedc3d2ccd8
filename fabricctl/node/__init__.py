"""The node service: starts and stops agents, seals and collects traces."""
