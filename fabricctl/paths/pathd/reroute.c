#include "reroute.h"

#define SECOND 1000000000ull
#define BUSY_FOR_NS (SECOND * 3 / 10) /* longer than a burst, shorter than anybody's patience */
#define CALM_FOR_NS SECOND
#define TRIAL_NS SECOND
#define HOLD_NS (5 * SECOND)
#define HOLD_MAX_NS (300 * SECOND)
#define ROOM 8 /* times shorter than what is called congested */
#define OWN_MOST 600 /* permille of a rail: beyond it is our own doing */

static void watch(struct reroute *reroute, const struct reroute_view *view, uint64_t now_ns)
{
	for (unsigned i = 0; i < view->rails; i++) {
		bool busy = view->queue_ns[i] >= view->congested_ns;
		/* Where nothing is sent nothing waits, which says nothing of its room. */
		bool calm = view->good >> i & 1 && view->queue_ns[i] <= view->congested_ns / ROOM;

		if (!busy)
			reroute->busy_ns[i] = 0;
		else if (!reroute->busy_ns[i])
			reroute->busy_ns[i] = now_ns;
		if (!calm)
			reroute->calm_ns[i] = 0;
		else if (!reroute->calm_ns[i])
			reroute->calm_ns[i] = now_ns;
	}
}

/* A rail that would take what leaves `rail`. */
static bool has_room_elsewhere(const struct reroute *reroute, const struct reroute_view *view,
			       unsigned rail, uint64_t now_ns)
{
	for (unsigned i = 0; i < view->rails; i++)
		if (i != rail && view->good >> i & 1 && !(reroute->away >> i & 1) &&
		    reroute->calm_ns[i] && now_ns - reroute->calm_ns[i] >= BUSY_FOR_NS)
			return true;
	return false;
}

static bool all_others_busy(const struct reroute *reroute, const struct reroute_view *view, unsigned rail)
{
	for (unsigned i = 0; i < view->rails; i++)
		if (i != rail && view->good >> i & 1 && !reroute->busy_ns[i])
			return false;
	return true;
}

static void come_back(struct reroute *reroute, unsigned rail, uint64_t wait_ns, uint64_t now_ns)
{
	reroute->away &= (uint8_t)~(1u << rail);
	reroute->not_before_ns = now_ns + wait_ns;
}

static bool judge(struct reroute *reroute, const struct reroute_view *view, unsigned rail, uint64_t now_ns)
{
	uint64_t hold = reroute->hold_ns ? reroute->hold_ns : HOLD_NS;

	if (reroute->away >> rail & 1) {
		uint64_t since = now_ns - reroute->left_ns[rail];

		if (since < TRIAL_NS && all_others_busy(reroute, view, rail)) {
			reroute->hold_ns = 2 * hold < HOLD_MAX_NS ? 2 * hold : HOLD_MAX_NS;
			come_back(reroute, rail, reroute->hold_ns, now_ns);
			return true;
		}
		if (since < hold || !reroute->calm_ns[rail] ||
		    now_ns - reroute->calm_ns[rail] < CALM_FOR_NS)
			return false;
		come_back(reroute, rail, hold, now_ns);
		return true;
	}
	if (!reroute->busy_ns[rail] || now_ns - reroute->busy_ns[rail] < BUSY_FOR_NS ||
	    now_ns < reroute->not_before_ns || view->own[rail] > OWN_MOST ||
	    !has_room_elsewhere(reroute, view, rail, now_ns))
		return false;
	reroute->away |= (uint8_t)(1u << rail);
	reroute->left_ns[rail] = now_ns;
	return true;
}

bool reroute_turn(struct reroute *reroute, const struct reroute_view *view, uint64_t now_ns)
{
	bool changed = false;

	watch(reroute, view, now_ns);
	for (unsigned i = 0; i < view->rails; i++)
		changed |= judge(reroute, view, i, now_ns);
	return changed;
}
