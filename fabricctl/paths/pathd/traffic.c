/* Whom the job talks to, and when its streams run again after a move. */
#include "daemon.h"
#include "diag.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#define POLL_NS (800 * MS) /* until then a new pair is probed like one without traffic */
#define POLL_MAX_NS (1 * S)
/* The kernel walks the table of all its sockets, which has half a million rows on a large node. */
#define POLL_SHARE 500
#define ACTIVE_NS (2 * S) /* quick probes outlive a pause of the job's traffic by this much */
#define WATCH_NS (2 * S)
/* Long messages fill their segments: 24 KiB and more of 1,460 bytes. Less than ROOM_LEAST tells nothing. */
#define FULL_PERCENT 95
#define ROOM_LEAST (64 << 10)
/* Between looks at streams that wait: the time since the move is known this well. */
#define LOOK_NS (3 * MS)
#define LOOK_SHARE 5

static int order_owners(const void *a, const void *b)
{
	return ip_order(&((const struct owner *)a)->ip, &((const struct owner *)b)->ip);
}

void traffic_index(struct daemon *d)
{
	size_t room = (size_t)d->conf.nodes * d->conf.rails * FAMILIES * 2;

	if (!d->owner)
		d->owner = calloc(room, sizeof(*d->owner));
	d->owners = 0;
	for (unsigned i = 0; d->owner && i < d->conf.nodes; i++)
		for (unsigned k = 0; k < d->conf.rails && d->peer[i].known; k++)
			for (int family = 0; family < FAMILIES; family++) {
				const struct ip *fabric = &d->peer[i].route.fabric[family][k];
				const struct ip *own = &d->peer[i].route.via[family][k];

				if (fabric->family)
					d->owner[d->owners++] = (struct owner){*fabric, i, (uint8_t)k};
				if (own->family && d->conf.own)
					d->owner[d->owners++] = (struct owner){*own, i, (uint8_t)k};
			}
	if (d->owners)
		qsort(d->owner, d->owners, sizeof(*d->owner), order_owners);
}

static struct peer *find_peer(struct daemon *d, const struct ip *to, unsigned *rail)
{
	struct owner wanted = {.ip = *to}, *found = NULL;

	if (d->owners)
		found = bsearch(&wanted, d->owner, d->owners, sizeof(*d->owner), order_owners);
	if (!found)
		return NULL;
	*rail = found->rail;
	return &d->peer[found->peer];
}

static void see_traffic(struct daemon *d, struct peer *peer)
{
	if (d->now_ns > peer->active_until_ns)
		peer->next_send_ns = peer->next_look_ns = d->now_ns;
	peer->active_until_ns = d->now_ns + ACTIVE_NS;
}

static void see_open(const struct diag_socket *socket, void *arg)
{
	struct daemon *d = arg;
	unsigned rail;
	struct peer *peer = find_peer(d, &socket->to, &rail);

	if (!peer)
		return;
	peer->open++;
	peer->streamed += socket->acked_bytes + socket->received_bytes + 1;
	peer->received += socket->received_bytes;
	peer->room += socket->received_room;
	if (socket->waiting_bytes) /* on its way, or it does not get through */
		see_traffic(d, peer);
}

static void dump_all(struct daemon *d, diag_each *each, void *arg)
{
	const struct net *pools[FAMILIES] = {&d->conf.pool4, &d->conf.pool6};
	struct net nets[DIAG_NETS];
	size_t count = 0;

	/* Sockets of IPv6 last: they may be connected over IPv4. */
	for (int family = 0; family < FAMILIES; family++) {
		if (pools[family]->ip.family)
			nets[count++] = *pools[family];
		for (unsigned i = 0; i < d->conf.rails; i++) {
			const struct ip *own = &d->mover.own[family][i];

			if (own->family)
				nets[count++] = (struct net){*own, (uint8_t)(8 * ip_bytes(own))};
		}
		if (count)
			diag_dump(&d->diag, family == FAMILY4 ? AF_INET : AF_INET6, nets, count, each, arg);
	}
}

/* A stream that ended took its part with it: then the sums are less, or say little. */
static void see_lengths(struct peer *peer)
{
	uint64_t room = peer->room - peer->room_before, received = peer->received - peer->received_before;

	if (peer->room >= peer->room_before + ROOM_LEAST && peer->received >= peer->received_before)
		peer->long_messages = received * 100 >= room * FULL_PERCENT;
}

void traffic_poll(struct daemon *d)
{
	uint64_t begin, pause;

	if (d->now_ns < d->next_diag_ns)
		return;
	begin = mono_ns();
	for (unsigned i = 0; i < d->conf.nodes; i++) {
		d->peer[i].open = 0;
		d->peer[i].streamed_before = d->peer[i].streamed;
		d->peer[i].streamed = 0;
		d->peer[i].received_before = d->peer[i].received;
		d->peer[i].room_before = d->peer[i].room;
		d->peer[i].received = d->peer[i].room = 0;
	}
	dump_all(d, see_open, d);
	pause = (mono_ns() - begin) * POLL_SHARE;
	pause = pause > POLL_NS ? pause : POLL_NS;
	d->next_diag_ns = d->now_ns + (pause < POLL_MAX_NS ? pause : POLL_MAX_NS);
	d->active = d->quiet = 0;
	for (unsigned i = 0; i < d->conf.nodes; i++) {
		struct peer *peer = &d->peer[i];

		if (peer->streamed != peer->streamed_before && peer->open)
			see_traffic(d, peer);
		see_lengths(peer);
		d->active += peer->active_until_ns > d->now_ns;
		d->quiet += peer->open && peer->active_until_ns <= d->now_ns;
	}
}

static bool is_due(const struct daemon *d, const struct recovery *recovery)
{
	return recovery->moved_ns && d->now_ns >= recovery->next_look_ns;
}

/* The first look notes the streams that wait; later ones count those that still do. */
static void see_stream(const struct diag_socket *socket, void *arg)
{
	struct daemon *d = arg;
	unsigned rail;
	struct peer *peer = find_peer(d, &socket->to, &rail);
	struct recovery *recovery = peer ? &peer->recovery[rail] : NULL;

	if (!recovery || !is_due(d, recovery) || !socket->waiting_bytes)
		return;
	if (!recovery->looked) {
		if (recovery->count < WATCHED_SOCKETS) {
			recovery->stream[recovery->count].source_port = socket->source_port;
			recovery->stream[recovery->count].to_port = socket->to_port;
			recovery->stream[recovery->count++].acked_bytes = socket->acked_bytes;
			recovery->waiting_bytes += socket->waiting_bytes;
		}
		return;
	}
	for (unsigned i = 0; i < recovery->count; i++)
		if (recovery->stream[i].source_port == socket->source_port &&
		    recovery->stream[i].to_port == socket->to_port &&
		    recovery->stream[i].acked_bytes == socket->acked_bytes)
			recovery->stuck++;
}

void traffic_watch(struct daemon *d, struct peer *peer, unsigned rail, uint64_t begin_ns)
{
	struct recovery *recovery = &peer->recovery[rail];

	d->watched += recovery->moved_ns == 0;
	memset(recovery, 0, sizeof(*recovery));
	recovery->begin_ns = begin_ns;
	recovery->moved_ns = mono_ns();
	recovery->next_look_ns = d->now_ns; /* in this turn */
}

/* After a look. */
static void conclude(struct daemon *d, struct peer *peer, unsigned rail, uint64_t now)
{
	struct recovery *recovery = &peer->recovery[rail];
	uint64_t since = now - recovery->moved_ns;

	recovery->next_look_ns = now + (since / LOOK_SHARE > LOOK_NS ? since / LOOK_SHARE : LOOK_NS);
	if (!recovery->looked) {
		recovery->looked = true;
		recovery->stuck = recovery->count;
	}
	if (recovery->stuck && since < WATCH_NS)
		return;
	if (recovery->count)
		event_write(
			&d->events, "recovered",
			";peer=%s;rail=%u;begin_mono_ns=%" PRIu64 ";moved_mono_ns=%" PRIu64
			";recovered_mono_ns=%" PRIu64 ";streams=%u;stuck=%u;waiting_bytes=%" PRIu64,
			peer->node->name, rail, recovery->begin_ns, recovery->moved_ns,
			recovery->stuck ? 0 : now, recovery->count, recovery->stuck,
			recovery->waiting_bytes);
	recovery->moved_ns = 0;
	d->watched--;
}

/* One look serves all that were moved. */
void traffic_turn(struct daemon *d)
{
	bool any = false;
	uint64_t now;

	for (unsigned i = 0; d->watched && i < d->conf.nodes; i++)
		for (unsigned rail = 0; rail < d->conf.rails; rail++)
			if (is_due(d, &d->peer[i].recovery[rail])) {
				d->peer[i].recovery[rail].stuck = 0;
				any = true;
			}
	if (!any)
		return;
	dump_all(d, see_stream, d);
	now = mono_ns();
	for (unsigned i = 0; d->watched && i < d->conf.nodes; i++)
		for (unsigned rail = 0; rail < d->conf.rails; rail++)
			if (is_due(d, &d->peer[i].recovery[rail]))
				conclude(d, &d->peer[i], rail, now);
}
