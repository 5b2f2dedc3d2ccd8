"""Real MPI jobs, real faults: what `fabricctl report` says of jobs in the lab that were harmed.

    python -m bench.diagnose.harm --keep DIR --seed 1 --faults 16     # one lab, some minutes
    python -m bench.diagnose.harm --keep DIR --seed 101 --healthy 20
    python -m bench.diagnose.judge DIR                                # all that lies in DIR

Harming keeps the trace and the lab's own fault log of each job; judging can be done again and
again. (bench/attribution.py has more jobs, simulated.)
"""
