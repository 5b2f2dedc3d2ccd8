"""Programs that run under the site's MPI; the only place that imports mpi4py."""
