"""The whole cluster, for those who run it: what is up, who used it, and changing it with care."""
