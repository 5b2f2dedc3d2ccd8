#include "share.h"

#define LEAST 1 /* permille: HTB wants a rate above zero */

static uint16_t least(unsigned a, unsigned b)
{
	return (uint16_t)(a < b ? a : b);
}

/* The first holding of the user that is known by the uid alone, as this one is: its class has what
 * all of them were promised. */
static unsigned owner_of(const struct holding *holding, unsigned at)
{
	for (unsigned i = 0; i < at && !holding[at].share.apart; i++)
		if (holding[i].share.uid == holding[at].share.uid && !holding[i].share.apart)
			return i;
	return at;
}

static void cut(struct grant *grant, unsigned count, unsigned sum, unsigned room)
{
	for (unsigned i = 0; i < count && sum > room; i++)
		grant[i].guarantee = (uint16_t)(grant[i].guarantee * room / sum);
}

uint16_t share_plan(const struct holding *holding, unsigned count, struct grant *grant)
{
	unsigned room = SHARE_WHOLE - SHARE_CONTROL - SHARE_REST_LEAST, sum = 0, used = 0;

	for (unsigned i = 0; i < count; i++) {
		const struct share *share = &holding[i].share;
		unsigned owner = owner_of(holding, i);

		sum += share->guarantee;
		grant[i] = (struct grant){holding[i].slot, 0, share->ceiling, share->class, owner != i};
		grant[owner].guarantee = least(grant[owner].guarantee + share->guarantee, SHARE_WHOLE);
		if (share->ceiling > grant[owner].ceiling)
			grant[owner].ceiling = share->ceiling;
		if (share->class < grant[owner].class)
			grant[owner].class = share->class;
	}
	cut(grant, count, sum, room);
	for (unsigned i = 0; i < count; i++) {
		used += grant[i].guarantee;
		if (grant[i].guarantee < LEAST)
			grant[i].guarantee = LEAST;
		if (grant[i].ceiling < grant[i].guarantee)
			grant[i].ceiling = grant[i].guarantee;
	}
	return (uint16_t)(SHARE_WHOLE - SHARE_CONTROL - used);
}
