/* Probes: sending them in time, and taking in what arrives. */
#include "daemon.h"

#include <string.h>

#define IDLE_NS (100 * MS) /* to peers without traffic, at least */
#define IDLE_BUDGET_PPS 400
#define QUIET_NS (20 * MS) /* to peers whose streams carry nothing, at least */
#define URGENT_NS (5 * MS) /* after one, more are looked for in each turn */
#define DOUBT_NS (MS / 2)
#define CALM_NS (5 * MS) /* in doubt about a peer without traffic: nobody waits for that verdict */
#define HURRY_NS (4 * MS)
#define STALLED_NS (20 * MS) /* to a peer that is silent everywhere */
#define ANSWER_GAP_NS (MS / 4)
#define MANAGE_NS (20 * MS)
#define RECEIVE_MAX 100000
#define HEADERS4 28 /* IP and UDP */
#define HEADERS6 48
#define LARGE_MAX 9000

static const uint8_t padding[LARGE_MAX];

uint64_t probing_idle_ns(const struct daemon *d)
{
	uint64_t least = (uint64_t)d->conf.nodes * d->conf.rails * S / IDLE_BUDGET_PPS;

	return least > IDLE_NS ? least : IDLE_NS;
}

/* The streams of a job that began all-to-all are many and mostly unused. */
static uint64_t quiet_ns(const struct daemon *d)
{
	uint64_t least = (uint64_t)d->quiet * d->conf.rails * S / IDLE_BUDGET_PPS;
	uint64_t idle = probing_idle_ns(d);

	least = least > QUIET_NS ? least : QUIET_NS;
	return least < idle ? least : idle;
}

uint64_t probing_interval_ns(const struct daemon *d, const struct peer *peer)
{
	uint64_t wanted = d->conf.interval_us * 1000ull, least;

	if (d->now_ns > peer->active_until_ns)
		return peer->open ? quiet_ns(d) : probing_idle_ns(d);
	least = (uint64_t)d->active * d->conf.rails * S / d->conf.budget_pps;
	return wanted > least ? wanted : least;
}

/* What a peer is told of our next probe. One without traffic gets it in one of the next idle ticks, and
 * each of them may be late: were it told the interval alone, every busy node would be in doubt of every
 * other one all the time, and the quick probes of that doubt would keep all of them busy. */
static uint64_t promise_ns(const struct daemon *d, const struct peer *peer)
{
	uint64_t interval = probing_interval_ns(d, peer);

	return d->now_ns > peer->active_until_ns ? interval + interval / 2 : interval;
}

static uint16_t queue_units(const struct path *path)
{
	uint64_t units = queue_ns(&path->queue) / WIRE_QUEUE_NS;

	return units < UINT16_MAX ? (uint16_t)units : UINT16_MAX;
}

static uint16_t back_units(const struct path *path, uint64_t now_ns)
{
	uint64_t left = path->back_ns > now_ns ? path->back_ns - now_ns : 0;

	return path->apart ? (uint16_t)(left / WIRE_BACK_NS) : 0;
}

static void fill_view(const struct daemon *d, const struct peer *peer, struct wire *wire)
{
	for (unsigned i = 0; i < d->conf.rails; i++) {
		enum level own = pair_own_level(&peer->pair, i);

		wire->probe.view[i].level = (uint8_t)own;
		wire->probe.view[i].reason =
			(uint8_t)(own == LEVEL_GOOD ? REASON_NONE : pair_reason(&peer->pair, i));
		wire->probe.view[i].hears = d->rail[i].hears;
		wire->probe.view[i].pinned = peer->pair.pin == (int)i;
		wire->probe.view[i].queue = queue_units(&peer->pair.path[i]);
		wire->probe.view[i].back = back_units(&peer->pair.path[i], wire->sent_ns);
	}
}

static size_t large_size(const struct rail *rail, const struct target *to)
{
	unsigned headers = to->address.ss_family == AF_INET6 ? HEADERS6 : HEADERS4;
	unsigned size = rail->mtu > headers ? rail->mtu - headers : 0;

	return size < LARGE_MAX ? size : LARGE_MAX;
}

static void send_one(struct daemon *d, struct peer *peer, unsigned rail, uint8_t flags)
{
	uint8_t data[LARGE_MAX];
	const struct target *to = &peer->probe[rail];
	bool large = (peer->sequence[rail] + 1) % LARGE_EVERY == 0;
	bool past_share = large && d->sliced >> rail & 1;
	size_t size, whole = large ? large_size(&d->rail[rail], to) : 0;
	uint64_t now = mono_ns();
	struct wire wire = {
		.type = WIRE_PROBE,
		.rail = (uint8_t)rail,
		.flags = flags | (large ? WIRE_LARGE : 0),
		.rails = (uint8_t)d->conf.rails,
		.from = d->conf.self,
		.to = peer->number,
		.session = d->session,
		.to_session = peer->session,
		.sequence = peer->sequence[rail] + 1,
		.sent_ns = now,
	};

	wire.probe.echo_sent_ns = peer->echo_sent_ns[rail];
	if (peer->echo_sent_ns[rail] && now - peer->echo_received_ns[rail] < UINT32_MAX)
		wire.probe.echo_hold_ns = (uint32_t)(now - peer->echo_received_ns[rail]);
	wire.probe.next_us = (uint32_t)(promise_ns(d, peer) / 1000);
	fill_view(d, peer, &wire);
	size = wire_encode(&wire, d->conf.key, data);
	if (whole > size) {
		memcpy(data + size, padding, whole - size);
		size = whole;
	}
	if (past_share)
		sockets_class(d->rail[rail].socket, to, true);
	/* A number is spent only on what really left: a gap means loss on the way. */
	if (sockets_send(d->rail[rail].socket, to, data, size, large && !past_share,
			 peer->pair.path[rail].listening == HEARD)) {
		peer->sequence[rail]++;
		d->probes_sent++;
	}
	if (past_share)
		sockets_class(d->rail[rail].socket, to, false);
}

void probing_send(struct daemon *d, struct peer *peer, uint8_t flags)
{
	if (pair_in_doubt(&peer->pair, d->now_ns))
		flags |= WIRE_QUERY;
	d->turn++;
	for (unsigned i = 0; i < d->conf.rails; i++) {
		unsigned rail = (i + d->turn) % d->conf.rails; /* no rail is always first */

		if (d->rail[rail].carrier && peer->probe[rail].size)
			send_one(d, peer, rail, flags);
	}
	peer->last_send_ns = d->now_ns;
	peer->next_send_ns = d->now_ns + probing_interval_ns(d, peer);
}

static void take_views(struct daemon *d, struct peer *peer, const struct wire *wire,
		       uint64_t received_ns)
{
	struct pair *pair = &peer->pair;

	if (wire->sent_ns <= pair->view_sent_ns)
		return;
	pair->view_sent_ns = wire->sent_ns;
	for (unsigned i = 0; i < d->conf.rails && i < wire->rails; i++) {
		const struct wire_view *view = &wire->probe.view[i];
		struct path *path = &pair->path[i];

		if (view->level >= LEVELS || view->reason >= REASONS)
			continue;
		if (path->peer_level != view->level || path->peer_pinned != (view->pinned == 1))
			peer->next_look_ns = d->now_ns;
		path->peer_level = view->level;
		path->peer_reason = view->reason;
		path->peer_hears = view->hears;
		path->peer_pinned = view->pinned == 1;
		path->peer_queue_ns = (uint64_t)view->queue * WIRE_QUEUE_NS;
		if (view->back) /* known to half a round trip */
			path->peer_back_ns = received_ns - path->round_trip_floor_ns / 2 +
					     (uint64_t)view->back * WIRE_BACK_NS;
	}
}

static void take_round_trip(struct path *path, const struct wire *wire, uint64_t received_ns)
{
	uint64_t trip = received_ns - wire->probe.echo_sent_ns - wire->probe.echo_hold_ns;

	if (!wire->probe.echo_sent_ns || trip > 10 * S)
		return;
	path->round_trip_ns = path->round_trip_ns ? (7 * path->round_trip_ns + trip) / 8 : trip;
	if (!path->round_trip_floor_ns || trip < path->round_trip_floor_ns)
		path->round_trip_floor_ns = trip;
}

static void take_probe(struct daemon *d, unsigned rail, const struct wire *wire, uint64_t received_ns)
{
	struct arrival arrival = {rail, wire->sequence, wire->sent_ns, received_ns,
				  wire->probe.next_us * 1000ull};
	struct peer *peer = &d->peer[wire->from];

	if (wire->rail != rail || !peer->known || wire->session != peer->session ||
	    wire->to_session != d->session) {
		/* Somebody who restarted, or whom we do not know yet: settle it by hellos. */
		if (peer->next_hello_ns > d->now_ns + 100 * MS)
			peer->next_hello_ns = d->now_ns + 100 * MS;
		return;
	}
	if (!pair_arrived(&peer->pair, &arrival))
		return;
	d->probes_received++;
	peer->received_ns = d->now_ns;
	peer->echo_sent_ns[rail] = wire->sent_ns;
	peer->echo_received_ns[rail] = received_ns;
	take_round_trip(&peer->pair.path[rail], wire, received_ns);
	take_views(d, peer, wire, received_ns);
	if (wire->flags & WIRE_QUERY)
		d->hurry_until_ns = d->now_ns + HURRY_NS;
	if (wire->flags & WIRE_QUERY && d->now_ns - peer->last_send_ns > ANSWER_GAP_NS)
		peer->next_send_ns = d->now_ns;
}

static void receive_one(struct daemon *d, unsigned rail, const struct received *one)
{
	struct wire wire;

	if (!wire_decode(&wire, d->conf.key, one->data, one->size) || wire.from >= d->conf.nodes ||
	    wire.from == d->conf.self || wire.to != d->conf.self)
		return;
	if (wire.type == WIRE_HELLO)
		hello_received(d, &wire, &one->from);
	else if (rail < d->conf.rails)
		take_probe(d, rail, &wire, one->received_ns);
}

static void receive_all(struct daemon *d, int fd, unsigned rail)
{
	static struct received many[RECEIVE_BATCH];
	unsigned got = RECEIVE_BATCH;

	/* Bounded: a flood must not keep us from sending. */
	for (unsigned i = 0; i < RECEIVE_MAX && got == RECEIVE_BATCH; i += got) {
		got = sockets_receive(fd, many);
		for (unsigned k = 0; k < got; k++)
			receive_one(d, rail, &many[k]);
	}
}

void probing_receive(struct daemon *d)
{
	for (unsigned i = 0; i < d->conf.rails; i++) {
		receive_all(d, d->rail[i].socket, i);
		if (d->rail[i].urgent >= 0 && d->now_ns - d->urgent_ns < URGENT_NS)
			receive_all(d, d->rail[i].urgent, i);
	}
	/* Hellos alone come there, and once all are met a few a minute. */
	if (d->phase >= PHASE_READY && d->now_ns < d->next_manage_ns)
		return;
	d->next_manage_ns = d->now_ns + MANAGE_NS;
	receive_all(d, d->manage, MAX_RAILS);
}

uint64_t probing_doubt_ns(const struct daemon *d, const struct peer *peer)
{
	uint64_t stalled = peer->pair.stalled_ns;

	if (stalled && d->now_ns - stalled > 100 * MS)
		return STALLED_NS;
	return d->now_ns > peer->active_until_ns ? CALM_NS : DOUBT_NS;
}

void probing_turn(struct daemon *d)
{
	/* A tick that keeps step comes so much early. */
	uint64_t soon_ns = d->now_ns + d->conf.interval_us * 1000ull / TURN_STEPS;

	for (unsigned i = 0; i < d->conf.nodes; i++) {
		struct peer *peer = &d->peer[i];

		if (!peer->known)
			continue;
		if (pair_in_doubt(&peer->pair, d->now_ns) &&
		    peer->next_send_ns > peer->last_send_ns + probing_doubt_ns(d, peer))
			peer->next_send_ns = peer->last_send_ns + probing_doubt_ns(d, peer);
		if (soon_ns >= peer->next_send_ns)
			probing_send(d, peer, 0);
	}
}
