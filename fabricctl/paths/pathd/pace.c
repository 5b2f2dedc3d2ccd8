#include "pace.h"

#define BACK_OFF 0.8
#define DEEPEST 0.5
#define RISE 15.0 /* permille a step: from the floor to all of a rail in 2.5 s */

/* Below these a class is not slowed, whatever waits: others may not slow down at all. */
static const double FLOORS[SHARE_CLASSES] = {
	[SHARE_FIRST] = SHARE_WHOLE, [SHARE_NORMAL] = 250, [SHARE_LAST] = 50};

void pace_init(struct pace *pace, const struct share *share)
{
	*pace = (struct pace){.rate = share->ceiling, .ceiling = share->ceiling};
	pace->floor = FLOORS[share->class];
	if (pace->floor < share->guarantee)
		pace->floor = share->guarantee;
	if (pace->floor > pace->ceiling)
		pace->floor = pace->ceiling;
}

bool pace_turn(struct pace *pace, uint64_t queue_ns, uint64_t target_ns, uint64_t now_ns)
{
	double before = pace->rate, excess, factor;

	if (now_ns < pace->next_ns || !target_ns)
		return false;
	pace->next_ns = now_ns + PACE_STEP_NS;
	if (queue_ns > target_ns) {
		excess = (double)(queue_ns - target_ns) / (double)queue_ns;
		factor = 1 - BACK_OFF * excess;
		pace->rate *= factor > DEEPEST ? factor : DEEPEST;
	} else {
		pace->rate += RISE;
	}
	if (pace->rate < pace->floor)
		pace->rate = pace->floor;
	if (pace->rate > pace->ceiling)
		pace->rate = pace->ceiling;
	if (pace->rate >= pace->ceiling)
		pace->throttled_ns = 0;
	else if (!pace->throttled_ns)
		pace->throttled_ns = now_ns;
	return (uint16_t)before != (uint16_t)pace->rate;
}
