"""The job clock (after Huygens, NSDI 2018)."""
