"""The job clock: every node of an allocation on one time base, in software.

After Geng et al., "Exploiting a Natural Network Effect for Scalable, Fine-grained Clock
Synchronization" (Huygens), NSDI 2018. docs/clock.md tells how the parts fit.

Signs, defined here once and used by every module of this package:

* *node time*: a node's CLOCK_MONOTONIC_RAW, which nobody steers, less a constant chosen once so
  that it begins as CLOCK_REALTIME. *Job time*: what the nodes' clocks agree on.
* ``theta_ns`` of a node: what its node time is *ahead of* job time.
* ``offset_ns`` of an edge (a, b): ``theta_b - theta_a``; positive: b's clock is ahead of a's.
* ``drift_ppb``, ``slope_ppb``: the change of one of the above in ns per second.
* a packet from a to b bounds it from above: ``received_b - sent_a = offset + one-way delay``;
  a packet from b to a from below: ``sent_b - received_a = offset - one-way delay``.
* ``margin_ns`` of an edge: half the distance of the two bounds, which is half a round trip.
"""
