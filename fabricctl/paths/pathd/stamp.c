#include "stamp.h"

#define STEP_NS 100000 /* more than both clocks are read apart */
#define UNSURE_NS 50000000ull /* two idle ticks: what was stamped before has been read by then */
#define OLDEST_NS 10000000000ull

void stamping_look(struct stamping *stamping, uint64_t mono_ns, uint64_t real_ns)
{
	int64_t ahead = (int64_t)(real_ns - mono_ns), moved = ahead - stamping->ahead_ns;

	if (stamping->mono_ns && (moved > STEP_NS || moved < -STEP_NS))
		stamping->unsure_until_ns = mono_ns + UNSURE_NS;
	stamping->ahead_ns = ahead;
	stamping->mono_ns = mono_ns;
}

uint64_t stamping_mono_ns(const struct stamping *stamping, uint64_t stamp_real_ns)
{
	uint64_t mono = stamp_real_ns - (uint64_t)stamping->ahead_ns;

	if (stamping->mono_ns < stamping->unsure_until_ns || stamping->mono_ns - mono >= OLDEST_NS)
		return stamping->mono_ns;
	return mono;
}
