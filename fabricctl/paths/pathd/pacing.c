/* What a job sends where others send too: its share, its pace, and another way round a queue. */
#include "daemon.h"
#include "lease.h"
#include "slice.h"
#include "slicing.h"

#include <errno.h>
#include <inttypes.h>
#include <math.h>
#include <string.h>
#include <unistd.h>

#define LOAD_NS (200 * MS)
#define REROUTE_NS (20 * MS)
#define GROUP_NS (200 * MS) /* a step's first packets are everybody else's for so long at most */
#define SAY_AGAIN_NS (10 * S) /* one that slows down and recovers all the time is told this often */

static const char *const CLASS_NAMES[SHARE_CLASSES] = {"first", "normal", "last"};

/* While root: what drops its capabilities later cannot load programs. */
void pacing_load(struct daemon *d)
{
	struct share *share = &d->conf.share;
	int map = -1;

	d->program[0] = d->program[1] = -1;
	if (!share->ceiling)
		return;
	if (d->conf.group[0])
		d->group = filter_group_make(&map);
	d->program[0] = filter_load_job(share->uid, SLICE_JOB(d->mover.slot), map);
	if (d->program[0] < 0 && d->group) { /* a kernel without the one or the other */
		d->group = NULL;
		d->program[0] = filter_load_job(share->uid, SLICE_JOB(d->mover.slot), -1);
	}
	d->program[1] = filter_load_control(SLICE_CONTROL);
	if (d->program[0] < 0 || d->program[1] < 0)
		d->program_error = errno;
	if (d->group)
		d->group->level = d->conf.group_level;
	share->apart = d->group != NULL;
	if (map >= 0)
		close(map);
}

/* What all programs of this node send on each rail. */
static void read_load(struct daemon *d)
{
	uint64_t since = d->now_ns - d->load_ns, sent;
	FILE *stream = fopen("/proc/self/net/dev", "re");
	char line[512], *at;

	d->load_ns = d->now_ns;
	while (stream && fgets(line, sizeof(line), stream)) {
		char *name = line + strspn(line, " ");

		at = strchr(name, ':');
		if (!at || sscanf(at + 1, "%*u %*u %*u %*u %*u %*u %*u %*u %" SCNu64, &sent) != 1)
			continue;
		*at = '\0';
		for (unsigned i = 0; i < d->conf.rails; i++) {
			struct rail *rail = &d->rail[i];
			double most = (double)rail->conf->bytes_per_s * (double)since / 1e9;

			if (strcmp(rail->conf->name, name) != 0)
				continue;
			rail->load = rail->sent_bytes && most > 0
					     ? fmin(1, (double)(sent - rail->sent_bytes) / most)
					     : 1;
			rail->sent_bytes = sent;
		}
	}
	if (stream)
		fclose(stream);
}

static void refuse(struct daemon *d, const char *rail, const char *why)
{
	event_write(&d->events, "trouble", ";what=no share of %s;why=%s", rail, why);
}

static bool slice_one(struct daemon *d, unsigned rail)
{
	const struct conf_rail *conf = &d->conf.rail[rail];
	int error;

	if (!conf->bytes_per_s) {
		refuse(d, conf->name, "its rate is not known: set share.rail_mbit");
		return false;
	}
	error = slicing_mark(&d->mover.rtnl, d->conf.leases, conf);
	if (error) {
		refuse(d, conf->name, error == -EBUSY ? "the site configured a queue there" : strerror(-error));
		return false;
	}
	return true;
}

/* With the node's lock held. A job whose share cannot be had runs without. */
void pacing_setup(struct daemon *d)
{
	const struct share *share = &d->conf.share;
	int error = 0;

	if (!share->ceiling)
		return;
	if (d->program[0] < 0 || d->program[1] < 0) {
		refuse(d, "any rail", strerror(d->program_error));
		error = -d->program_error;
	}
	for (unsigned i = 0; !error && i < d->conf.rails; i++)
		if (slice_one(d, i))
			d->sliced |= (uint8_t)(1u << i);
	if (!d->sliced) {
		lease_set_share(d->conf.leases, d->mover.slot, NULL);
		slicing_apply(&d->mover.rtnl, d->conf.leases, d->mover.slot, NULL);
		return;
	}
	lease_set_share(d->conf.leases, d->mover.slot, share);
	error = slicing_apply(&d->mover.rtnl, d->conf.leases, d->mover.slot, &d->grant);
	for (unsigned i = 0; !error && i < d->conf.rails; i++)
		if (d->sliced >> i & 1)
			error = slice_filters(&d->mover.rtnl, d->rail[i].ifindex, d->mover.slot,
					      d->program[0], d->program[1]);
	if (error) {
		refuse(d, "any rail", strerror(-error));
		d->sliced = 0;
		lease_set_share(d->conf.leases, d->mover.slot, NULL);
		slicing_apply(&d->mover.rtnl, d->conf.leases, d->mover.slot, NULL);
		return;
	}
	for (unsigned i = 0; i < d->conf.rails; i++)
		pace_init(&d->pace[i], share);
	event_write(&d->events, "share", ";what=%u to %u %% of %u rails, class %s%s",
		    d->grant.guarantee / 10, d->grant.ceiling / 10, (unsigned)__builtin_popcount(d->sliced),
		    CLASS_NAMES[d->grant.class],
		    d->grant.guarantee < share->guarantee ? ": other jobs were promised too much" : "");
}

/* What waits on the way to any peer that the job talks to. */
static uint64_t queue_of(const struct daemon *d, unsigned rail)
{
	uint64_t most = 0;

	for (unsigned i = 0; i < d->conf.nodes; i++) {
		const struct peer *peer = &d->peer[i];

		if (peer->known && d->now_ns < peer->active_until_ns &&
		    peer->pair.path[rail].peer_queue_ns > most)
			most = peer->pair.path[rail].peer_queue_ns;
	}
	return most;
}

static void pace_rail(struct daemon *d, unsigned rail)
{
	struct pace *pace = &d->pace[rail];
	struct grant grant;
	uint64_t queue = queue_of(d, rail), was = pace->throttled_ns;

	if (!pace_turn(pace, queue, d->conf.pace_us * 1000ull, d->now_ns))
		return;
	slicing_grant(d->conf.leases, d->mover.slot, &d->grant); /* jobs come and go */
	grant = d->grant;
	if (pace->throttled_ns)
		grant.ceiling = (uint16_t)pace->rate;
	if (grant.ceiling < grant.guarantee)
		grant.ceiling = grant.guarantee;
	slice_grant(&d->mover.rtnl, d->rail[rail].ifindex, d->conf.rail[rail].bytes_per_s, &grant);
	if (!was && pace->throttled_ns && d->now_ns >= d->rail[rail].say_paced_ns) {
		d->rail[rail].say_paced_ns = d->now_ns + SAY_AGAIN_NS;
		event_write(&d->events, "paced", ";rail=%u;what=packets wait %" PRIu64 " us", rail,
			    queue / 1000);
	}
}

static void reroute_peer(struct daemon *d, struct peer *peer)
{
	struct reroute_view view = {.rails = d->conf.rails, .congested_ns = d->conf.reroute_us * 1000ull};
	uint8_t before = peer->reroute.away, changed;

	for (unsigned i = 0; i < d->conf.rails; i++) {
		bool good = pair_level(&peer->pair, i) == LEVEL_GOOD && peer->probe[i].size;

		view.good |= (uint8_t)(good << i);
		view.queue_ns[i] = peer->pair.path[i].peer_queue_ns;
		view.own[i] = d->rail[i].conf->bytes_per_s ? (uint16_t)(d->rail[i].load * SHARE_WHOLE)
							   : SHARE_WHOLE;
	}
	if (!reroute_turn(&peer->reroute, &view, d->now_ns))
		return;
	peer->pair.away = peer->reroute.away;
	peer->next_look_ns = d->now_ns;
	changed = before ^ peer->reroute.away;
	for (unsigned i = 0; i < d->conf.rails; i++)
		if (changed >> i & 1)
			event_write(&d->events, "rerouted", ";peer=%s;rail=%u;what=%s: packets wait %" PRIu64 " us",
				    peer->node->name, i, peer->reroute.away >> i & 1 ? "away" : "back",
				    view.queue_ns[i] / 1000);
}

void pacing_turn(struct daemon *d)
{
	if (d->sliced && d->group && d->now_ns >= d->next_group_ns) {
		d->next_group_ns = d->now_ns + GROUP_NS;
		filter_group_find(d->group, d->conf.group);
	}
	if (!d->active)
		return;
	for (unsigned i = 0; d->conf.pace_us && i < d->conf.rails; i++)
		if (d->sliced >> i & 1)
			pace_rail(d, i);
	if (!d->conf.reroute_us || d->now_ns < d->next_reroute_ns)
		return;
	d->next_reroute_ns = d->now_ns + REROUTE_NS;
	if (d->now_ns - d->load_ns >= LOAD_NS)
		read_load(d);
	for (unsigned i = 0; i < d->conf.nodes; i++)
		if (d->peer[i].routed && d->now_ns < d->peer[i].active_until_ns)
			reroute_peer(d, &d->peer[i]);
}
