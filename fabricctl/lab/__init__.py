"""A real multi-node Slurm on one machine, in namespaces."""
