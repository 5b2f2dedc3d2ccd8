#include "daemon.h"

#include <string.h>

#define CENSUS_NS (20 * MS)
#define SETTLE_NS (400 * MS)
#define SETTLE_IDLE 4 /* probes to peers without traffic, which find out by them alone */

static const char *const NAMES[] = {"none", "own_port", "one_of_two_ports", "switch",
				    "peers_port", "path"};

const char *cause_name(enum cause_what what)
{
	return NAMES[what];
}

enum cause_what cause_of(const struct census *census)
{
	if (!census->lost)
		return CAUSE_NONE;
	if (census->peers == 1)
		return census->carrier ? CAUSE_ONE_OF_TWO : CAUSE_OWN_PORT;
	if (census->lost == census->peers && census->deaf == census->lost)
		return CAUSE_SWITCH; /* ports of a dead one may lose carrier: no proof of our own */
	if (!census->carrier || census->lost == census->peers)
		return CAUSE_OWN_PORT;
	return census->deaf == census->lost ? CAUSE_PEERS_PORT : CAUSE_PATH;
}

bool cause_turn(struct cause *cause, const struct census *census, uint64_t now_ns,
		uint64_t settle_ns)
{
	enum cause_what seen = cause_of(census);

	if (seen != cause->seen || census->healing) {
		cause->seen = seen; /* those that are back first are no other fault */
		cause->since_ns = now_ns;
	}
	if (seen == cause->told || now_ns - cause->since_ns < settle_ns)
		return false;
	cause->told = seen;
	return seen != CAUSE_NONE;
}

static bool counts(const struct peer *peer, unsigned rail)
{
	return peer->known && !peer->pair.said_stalled && peer->probe[rail].size;
}

static struct census count_rail(struct daemon *d, unsigned rail)
{
	struct census census = {.carrier = d->rail[rail].carrier};
	unsigned heard = 0;

	for (unsigned i = 0; i < d->conf.nodes; i++) {
		const struct peer *peer = &d->peer[i];
		const struct path *path = &peer->pair.path[rail];

		if (!counts(peer, rail))
			continue;
		census.peers++;
		heard += path->listening == HEARD || path->listening == PROVING;
		if (pair_level(&peer->pair, rail) == LEVEL_DEAD) {
			census.lost++;
			census.deaf += path->peer_hears == 0;
		} else if (path->listening == PROVING) {
			census.healing++;
		}
	}
	d->rail[rail].hears = census.peers ? (uint8_t)(100 * heard / census.peers) : 255;
	return census;
}

void cause_find(struct daemon *d)
{
	uint64_t idle = SETTLE_IDLE * probing_idle_ns(d);

	if (d->now_ns < d->next_census_ns)
		return;
	d->next_census_ns = d->now_ns + CENSUS_NS;
	for (unsigned i = 0; i < d->conf.rails; i++) {
		struct census census = count_rail(d, i);
		struct cause *cause = &d->rail[i].cause;

		if (cause_turn(cause, &census, d->now_ns, idle > SETTLE_NS ? idle : SETTLE_NS))
			event_write(&d->events, "cause",
				    ";rail=%u;what=%s;peers=%u;lost=%u;deaf=%u", i,
				    cause_name(cause->told), census.peers, census.lost,
				    census.deaf);
	}
}
