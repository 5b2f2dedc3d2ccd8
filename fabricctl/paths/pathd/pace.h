/* How fast a job may send on one rail, from what waits on its paths: pure computation.
 *
 * The rule of Swift (Kumar et al., SIGCOMM 2020, section 3.1): above the target the rate falls in
 * proportion to the excess, at most by half a step; below it rises by a fixed part. It never falls
 * below what the job was promised, so jobs that pace themselves end at their guarantees. */
#ifndef FABRIC_PACE_H
#define FABRIC_PACE_H

#include "share.h"

struct pace {
	double rate; /* permille of the rail: the ceiling in force */
	double floor, ceiling;
	uint64_t next_ns, throttled_ns; /* since when it is below the ceiling; 0: it is not */
};

void pace_init(struct pace *pace, const struct share *share);

/* Between two steps, so that the last one shows in what is measured. */
#define PACE_STEP_NS 40000000ull

/* True when the ceiling changed by enough to tell the kernel. */
bool pace_turn(struct pace *pace, uint64_t queue_ns, uint64_t target_ns, uint64_t now_ns);

#endif
