/* The kernel stamps what arrives on CLOCK_REALTIME; verdicts are of CLOCK_MONOTONIC. Pure computation.
 *
 * The two are steered alike, so how far they are apart changes by steps alone. For a moment after one
 * nobody can tell which side of it a stamp is of: then all that is known is when it was read. */
#ifndef FABRIC_STAMP_H
#define FABRIC_STAMP_H

#include <stdint.h>

struct stamping {
	int64_t ahead_ns; /* CLOCK_REALTIME, of CLOCK_MONOTONIC */
	uint64_t mono_ns; /* of the last look */
	uint64_t unsure_until_ns;
};

/* Both clocks, read at the same time, before stamps are turned. */
void stamping_look(struct stamping *stamping, uint64_t mono_ns, uint64_t real_ns);
uint64_t stamping_mono_ns(const struct stamping *stamping, uint64_t stamp_real_ns);

#endif
