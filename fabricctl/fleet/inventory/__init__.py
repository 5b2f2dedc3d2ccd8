"""What hardware and software the cluster has, against what it should have."""
