"""Link failover for what a job's ranks send over TCP (docs/paths.md).

``fabric-pathd`` (C, ``pathd/``) probes, decides and moves; what is here prepares its
configuration, starts and ends it, reads what it reports, and tells MPI libraries what to use.
"""
