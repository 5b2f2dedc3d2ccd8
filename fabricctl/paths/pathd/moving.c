/* From verdicts to routes: what changed is moved at once, then told. */
#include "daemon.h"

#include <inttypes.h>
#include <string.h>

#define LOOK_IDLE_NS (20 * MS)
#define ASK_NS (3 * S) /* longer than a switch's port takes that does not look for loops */
#define RULES_NS (1 * S) /* no quarrel with whoever removes them */

static const char *const LEVEL_NAMES[LEVELS] = {"good", "poor", "dead"};

static uint8_t carriers(const struct daemon *d)
{
	uint8_t mask = 0;

	for (unsigned i = 0; i < d->conf.rails; i++)
		mask |= (uint8_t)(d->rail[i].carrier << i);
	return mask;
}

static void install(struct daemon *d, struct peer *peer)
{
	int error;

	for (unsigned i = 0; i < d->conf.rails; i++)
		peer->route.members[i] = pair_members(&peer->pair, i);
	error = mover_peer_install(&d->mover, &peer->route, carriers(d));
	peer->reinstall = error != 0;
	if (!error)
		peer->routed = true;
	else
		event_write(&d->events, "trouble", ";peer=%s;what=routes;why=%s", peer->node->name,
			    strerror(-error));
}

/* One that follows a dead fabric-pathd believes what that one last did: a rail that it had left
 * must prove itself first. */
static void inherit(struct daemon *d, struct peer *peer)
{
	for (unsigned i = 0; i < d->conf.rails; i++) {
		struct path *path = &peer->pair.path[i];

		if (peer->loaded[i] && !(peer->loaded[i] >> i & 1) && path->listening == HEARD) {
			path->listening = GONE;
			path->reason = REASON_SILENT;
			path->gone_ns = path->flap_ns = d->now_ns;
			path->flaps = 1;
			peer->told_level[i] = LEVEL_DEAD;
		}
		peer->loaded[i] = 0;
	}
}

/* On which no subnet is shared: nothing is sent there, and that nothing comes is no news. */
static bool leave_out(struct peer *peer, unsigned rail)
{
	struct path *path = &peer->pair.path[rail];

	if (peer->probe[rail].size)
		return false;
	path->listening = GONE;
	path->reason = REASON_NONE;
	path->gone_ns = path->heard_ns;
	peer->told_level[rail] = LEVEL_DEAD;
	return true;
}

void moving_peer_known(struct daemon *d, struct peer *peer)
{
	unsigned reached = 0;

	inherit(d, peer);
	traffic_index(d);
	for (unsigned i = 0; i < d->conf.rails; i++) {
		reached += !leave_out(peer, i);
		if (!d->rail[i].carrier)
			pair_carrier(&peer->pair, i, false, d->now_ns);
	}
	if (!reached) /* the kernel's own routes are all there is */
		return;
	install(d, peer);
	peer->next_send_ns = d->now_ns;
}

static bool move_addresses(struct daemon *d, struct peer *peer, uint8_t *moved)
{
	*moved = 0;
	for (unsigned i = 0; i < d->conf.rails; i++) {
		uint8_t members = pair_members(&peer->pair, i);

		if (members == peer->route.members[i])
			continue;
		if (mover_peer_set(&d->mover, &peer->route, i, members) != 0) {
			/* The kernel removed a nexthop with its port: set all of it up anew. */
			install(d, peer);
			*moved |= (uint8_t)(1u << i);
			return !peer->reinstall;
		}
		*moved |= (uint8_t)(1u << i);
		d->moves++;
	}
	return true;
}

static void tell_rail(struct daemon *d, struct peer *peer, unsigned rail, uint64_t begin_ns,
		      uint64_t moved_ns, uint8_t moved)
{
	const struct path *path = &peer->pair.path[rail];
	enum level level = pair_level(&peer->pair, rail);
	enum reason reason = pair_reason(&peer->pair, rail);

	event_write(&d->events, "path",
		    ";peer=%s;rail=%u;level=%s;reason=%s;peer_reason=%s;begin_mono_ns=%" PRIu64
		    ";moved_mono_ns=%" PRIu64 ";moved=%u;lost=%" PRIu64 ";seen=%" PRIu64,
		    peer->node->name, rail, LEVEL_NAMES[level], reason_name(reason),
		    reason_name((enum reason)path->peer_reason), begin_ns, moved ? moved_ns : 0, moved,
		    path->loss.lost, path->loss.seen);
}

/* What pair_evaluate found, by rail, or now where the peer told us. */
static uint64_t begin_of(const struct change_of *changes, unsigned count, unsigned rail, uint64_t now)
{
	for (unsigned i = 0; i < count; i++)
		if (changes[i].rail == rail && changes[i].change < CHANGE_STALLED)
			return changes[i].begin_ns;
	return now;
}

static void tell(struct daemon *d, struct peer *peer, const struct change_of *changes,
		 unsigned count, uint8_t moved)
{
	uint64_t moved_ns = moved ? mono_ns() : 0;

	for (unsigned i = 0; i < d->conf.rails; i++) {
		enum level level = pair_level(&peer->pair, i);
		uint64_t begin = begin_of(changes, count, i, d->now_ns);

		if (peer->pair.path[i].reason == REASON_CARRIER &&
		    peer->pair.path[i].listening == GONE)
			begin = peer->pair.path[i].gone_ns;
		if (moved >> i & 1)
			traffic_watch(d, peer, i, begin);
		if (level == peer->told_level[i])
			continue;
		tell_rail(d, peer, i, begin, moved_ns, moved);
		peer->told_level[i] = (uint8_t)level;
	}
	for (unsigned i = 0; i < count; i++)
		if (changes[i].change >= CHANGE_STALLED)
			event_write(&d->events,
				    changes[i].change == CHANGE_STALLED ? "stalled" : "back",
				    ";peer=%s;heard_mono_ns=%" PRIu64, peer->node->name,
				    changes[i].begin_ns);
}

static bool level_changed(const struct daemon *d, const struct peer *peer)
{
	for (unsigned i = 0; i < d->conf.rails; i++)
		if (pair_level(&peer->pair, i) != peer->told_level[i])
			return true;
	return false;
}

void moving_look(struct daemon *d, struct peer *peer)
{
	struct change_of changes[MAX_RAILS + 1];
	uint8_t moved = 0;
	unsigned count;

	if (!peer->known || (!peer->routed && !peer->reinstall) || d->now_ns < peer->next_look_ns)
		return; /* one without routes takes no part: there is nothing to move */
	if (d->now_ns > peer->active_until_ns && !pair_in_doubt(&peer->pair, d->now_ns))
		peer->next_look_ns = d->now_ns + LOOK_IDLE_NS;
	count = pair_evaluate(&peer->pair, d->now_ns, d->late, changes);
	if (peer->reinstall)
		install(d, peer);
	move_addresses(d, peer, &moved);
	if (peer->long_messages != peer->route.acks_at_once && d->acks_ns != d->now_ns) {
		d->acks_ns = d->now_ns; /* one peer a turn: a thousand at once would keep us from probing */
		mover_peer_acks(&d->mover, &peer->route, peer->long_messages);
	}
	if (!moved && !count && !level_changed(d, peer))
		return;
	probing_send(d, peer, WIRE_NEWS); /* the other end moves as soon as it knows */
	tell(d, peer, changes, count, moved);
}

/* Network services take the addresses of a port without carrier away after some seconds, and with
 * them every stream of the job there: keep them alive on the loopback device. */
static void hold_addresses(struct daemon *d, unsigned rail)
{
	for (int family = 0; family < FAMILIES; family++)
		if (d->mover.own[family][rail].family)
			mover_hold_address(&d->mover.rtnl, &d->mover.own[family][rail]);
}

void moving_address_gone(struct daemon *d, const struct ip *ip)
{
	for (unsigned rail = 0; rail < d->conf.rails; rail++)
		for (int family = 0; family < FAMILIES; family++) {
			if (!ip->family || !ip_equal(ip, &d->mover.own[family][rail]))
				continue;
			event_write(&d->events, "trouble", ";rail=%u;what=the address was removed", rail);
			hold_addresses(d, rail);
			/* The kernel dropped all routes that had it as their source. */
			for (unsigned i = 0; i < d->conf.nodes; i++)
				if (d->peer[i].routed)
					install(d, &d->peer[i]);
		}
}

void moving_carrier(struct daemon *d, unsigned rail, bool carrier)
{
	uint64_t now = d->now_ns;

	d->rail[rail].carrier = carrier;
	if (carrier)
		d->rail[rail].ask_until_ns = now + ASK_NS;
	event_write(&d->events, "link", ";rail=%u;carrier=%d", rail, carrier);
	for (unsigned i = 0; i < d->conf.nodes; i++) {
		struct peer *peer = &d->peer[i];

		pair_carrier(&peer->pair, rail, carrier, now);
		if (!peer->known || carrier)
			continue;
		/* Our kernel fell back by itself; the other end must hear of it first of all. */
		peer->next_look_ns = now;
		probing_send(d, peer, WIRE_NEWS);
	}
	for (unsigned i = 0; i < d->conf.nodes; i++) {
		struct peer *peer = &d->peer[i];
		uint8_t before[MAX_RAILS], moved = 0;

		if (!peer->routed)
			continue;
		memcpy(before, peer->route.members, sizeof(before));
		install(d, peer);
		for (unsigned k = 0; k < d->conf.rails; k++)
			moved |= (uint8_t)((before[k] != peer->route.members[k]) << k);
		tell(d, peer, NULL, 0, moved);
	}
	if (!carrier)
		hold_addresses(d, rail);
}

/* Somebody took our routing rules away, and perhaps more with them: all of it again. */
void moving_rules(struct daemon *d)
{
	if (!d->rules_gone || d->now_ns < d->next_rules_ns)
		return;
	d->rules_gone = false;
	d->next_rules_ns = d->now_ns + RULES_NS;
	event_write(&d->events, "trouble", ";what=routing rules were removed");
	shared_rules(d);
	for (unsigned i = 0; i < d->conf.nodes; i++)
		if (d->peer[i].routed)
			install(d, &d->peer[i]);
}

void moving_drain(struct daemon *d, unsigned rail, bool drained)
{
	d->rail[rail].drained = drained;
	for (unsigned i = 0; i < d->conf.nodes; i++) {
		d->peer[i].pair.path[rail].drained = drained;
		d->peer[i].next_look_ns = 0;
		moving_look(d, &d->peer[i]);
	}
}
