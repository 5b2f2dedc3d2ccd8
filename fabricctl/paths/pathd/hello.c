/* Finding the other nodes: addresses, ports and sessions over the management network, and the
 * agreement that all of them are ready.
 *
 * One node decides, the first of the job's list: READY once it and everybody HAVE what they need,
 * OFF when that takes too long. So the nodes of a job never disagree on whether its ranks use the
 * fabric addresses. */
#include "daemon.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#define HELLO_FIRST_NS (20 * MS)
#define HELLO_MAX_NS (1 * S)
#define ANSWER_GAP_NS (2 * MS) /* a peer that floods us is not helped to flood the network */

static void send_hello(struct daemon *d, struct peer *peer, const struct sockaddr_storage *back)
{
	uint8_t data[WIRE_MAX];
	struct wire wire = {
		.type = WIRE_HELLO,
		.rail = WIRE_HELLO_RAIL,
		.rails = (uint8_t)d->conf.rails,
		.from = d->conf.self,
		.to = peer->number,
		.session = d->session,
		.to_session = peer->session,
		.sequence = ++peer->hello_sequence,
		.sent_ns = mono_ns(),
		.hello = {.phase = (uint8_t)d->phase, .port = d->port, .origin = d->off_origin},
	};
	size_t size;

	for (unsigned i = 0; i < d->conf.rails; i++) {
		wire.hello.rail[i].net4 = d->rail[i].conf->net4;
		wire.hello.rail[i].ip6 = d->rail[i].conf->ip6;
	}
	wire.rails = wire.rails ? wire.rails : 1; /* one that is off may have none: zeros then */
	size = wire_encode(&wire, d->conf.key, data);
	if (back) {
		struct target to = {*back, back->ss_family == AF_INET ? sizeof(struct sockaddr_in)
								      : sizeof(struct sockaddr_in6)};

		sockets_send(d->manage, &to, data, size, false, false);
		return;
	}
	for (unsigned i = 0; i < CONF_PORTS; i++) {
		uint16_t port = peer->port ? peer->port : d->conf.port[i];
		struct target to = sockets_target(&peer->node->manage, port, 0);

		if (to.size)
			sockets_send(d->manage, &to, data, size, false, false);
		if (peer->port)
			break;
	}
}

static void say_again_soon(struct daemon *d, struct peer *peer)
{
	peer->hello_wait_ns = HELLO_FIRST_NS;
	peer->next_hello_ns = d->now_ns;
}

static void set_phase(struct daemon *d, enum phase phase)
{
	d->phase = phase;
	d->state_changed = true;
	if (phase == PHASE_READY)
		event_write(&d->events, "ready", ";after_ns=%" PRIu64, d->now_ns - d->started_ns);
	for (unsigned i = 0; i < d->conf.nodes; i++)
		say_again_soon(d, &d->peer[i]);
}

void hello_off(struct daemon *d, unsigned origin, const char *why)
{
	if (d->phase == PHASE_OFF)
		return;
	snprintf(d->why, sizeof(d->why), "%s", why);
	d->off_origin = origin;
	event_write(&d->events, "off", ";why=%s", d->why);
	set_phase(d, PHASE_OFF);
	/* Devices that lead nowhere would mislead the ranks: nothing of ours stays a moment longer, nor does
	 * a port's next event bring it back, in a slot that may be another job's by then. */
	rtnl_close(&d->monitor);
	for (unsigned i = 0; i < d->conf.nodes; i++)
		d->peer[i].routed = d->peer[i].reinstall = false;
	lease_release(d->conf.leases, d->mover.slot, d->conf.job);
}

/* Two nodes whose rail addresses agree in the bits that a fabric address has room for. */
static bool collides(const struct daemon *d, const struct peer *peer)
{
	for (unsigned i = 0; i < d->conf.nodes; i++) {
		const struct peer *other = &d->peer[i];

		for (unsigned rail = 0; rail < d->conf.rails; rail++) {
			const struct ip *mine = &peer->route.fabric[FAMILY4][rail];

			if (!mine->family)
				continue;
			if (other != peer && other->known && i != d->conf.self &&
			    ip_equal(mine, &other->route.fabric[FAMILY4][rail]))
				return true;
			if (ip_equal(mine, &d->mover.self[FAMILY4][rail]))
				return true;
		}
	}
	return false;
}

/* Whether the peer's IPv6 address is on the link of ours, whose subnet's size is not known: where there is
 * IPv4 that tells it, and probes go there. What lies behind a router is left to the kernel's own routes. */
static bool shares_link(const struct conf_rail *ours, const struct wire_rail *theirs, const struct ip *via4)
{
	if (!ours->ip6.family || !theirs->ip6.family)
		return false;
	if (ours->net4.ip.family)
		return via4->family;
	return memcmp(ours->ip6.byte, theirs->ip6.byte, 8) == 0; /* link-local ones among them */
}

/* The peer's addresses, as far as they can be reached on a subnet that we share. */
static void take_addresses(struct daemon *d, struct peer *peer, const struct wire *wire)
{
	unsigned usable = 0;

	if (d->phase == PHASE_OFF || wire->hello.phase == PHASE_OFF)
		return;
	memset(&peer->route.via, 0, sizeof(peer->route.via));
	memset(&peer->route.fabric, 0, sizeof(peer->route.fabric));
	for (unsigned i = 0; i < d->conf.rails && i < wire->rails; i++) {
		const struct wire_rail *theirs = &wire->hello.rail[i];
		const struct conf_rail *ours = d->rail[i].conf;
		struct ip *via4 = &peer->route.via[FAMILY4][i], *via6 = &peer->route.via[FAMILY6][i];

		if (ours->net4.ip.family && theirs->net4.ip.family &&
		    net_contains(&ours->net4, &theirs->net4.ip))
			*via4 = theirs->net4.ip;
		if (shares_link(ours, theirs, via4))
			*via6 = theirs->ip6;
		if (d->conf.pool4.ip.family && d->conf.fabric)
			peer->route.fabric[FAMILY4][i] = fabric_address(&d->conf.pool4, i, via4);
		if (d->conf.pool6.ip.family)
			peer->route.fabric[FAMILY6][i] = fabric_address(&d->conf.pool6, i, via6);
		peer->probe[i] = sockets_target(ours->net4.ip.family ? via4 : via6, wire->hello.port,
						d->rail[i].ifindex);
		usable += peer->probe[i].size != 0;
	}
	if (!usable) {
		char why[160];

		snprintf(why, sizeof(why), "%.60s shares no subnet with this node on any rail",
			 peer->node->name);
		if (d->conf.fabric)
			hello_off(d, d->conf.self, why);
		else
			event_write(&d->events, "trouble", ";peer=%s;what=not protected;why=%s",
				    peer->node->name, why);
	} else if (collides(d, peer)) {
		hello_off(d, d->conf.self, "two nodes get the same fabric address: choose a larger pool");
	}
}

static void believe(struct daemon *d, struct peer *peer, const struct wire *wire)
{
	bool first = !peer->known, changed = peer->phase != wire->hello.phase;

	for (unsigned i = 0; i < PAST_SESSIONS; i++)
		if (peer->past[i] == wire->session)
			return;
	if (peer->session != wire->session) {
		memmove(peer->past + 1, peer->past, sizeof(peer->past) - sizeof(peer->past[0]));
		peer->past[0] = peer->session;
		peer->session = wire->session;
		peer->hello_seen = 0;
		pair_new_session(&peer->pair, wire->session, d->now_ns);
		take_addresses(d, peer, wire);
		peer->port = wire->hello.port;
		peer->known = true;
		if (d->phase != PHASE_OFF && wire->hello.phase != PHASE_OFF)
			moving_peer_known(d, peer);
		say_again_soon(d, peer);
		event_write(&d->events, first ? "met" : "met_again", ";peer=%s", peer->node->name);
	}
	if (wire->sequence <= peer->hello_seen)
		return;
	peer->hello_seen = wire->sequence;
	peer->received_ns = d->now_ns;
	peer->phase = wire->hello.phase;
	if (d->phase >= PHASE_READY)
		return;
	if (peer->phase == PHASE_OFF) {
		/* The one that spread the word is not the one that it is about. */
		bool passed_on = wire->hello.origin < d->conf.nodes && wire->hello.origin != d->conf.self;
		unsigned origin = passed_on ? wire->hello.origin : peer->number;
		char why[160];

		snprintf(why, sizeof(why), "%.60s cannot take part", d->conf.node[origin].name);
		hello_off(d, origin, why);
	} else if (peer->number == 0 && peer->phase == PHASE_READY && d->phase == PHASE_HAVE) {
		set_phase(d, PHASE_READY);
	} else if (changed) {
		say_again_soon(d, peer);
	}
}

void hello_received(struct daemon *d, const struct wire *wire, const struct sockaddr_storage *from)
{
	struct peer *peer;

	if (wire->from >= d->conf.nodes || wire->from == d->conf.self || wire->to != d->conf.self)
		return;
	peer = &d->peer[wire->from];
	if (wire->to_session == d->session) {
		believe(d, peer, wire);
	} else if (d->now_ns - peer->hello_answer_ns > ANSWER_GAP_NS) {
		/* It does not know us yet. The answer proves to it that we are new; that it is, is
		 * proven by what it sends back. Its session is a claim: echo it, do not keep it. */
		uint64_t session = peer->session;

		peer->hello_answer_ns = d->now_ns;
		peer->session = wire->session;
		send_hello(d, peer, from);
		peer->session = session;
	}
}

static void decide(struct daemon *d)
{
	bool all_known = true, all_have = true;
	unsigned origin = d->conf.self;
	char why[160] = "";

	for (unsigned i = 0; i < d->conf.nodes; i++) {
		const struct peer *peer = &d->peer[i];

		if (i == d->conf.self)
			continue;
		if (!peer->known && !why[0]) {
			origin = i;
			snprintf(why, sizeof(why), "%.60s was not heard in %u s", peer->node->name,
				 d->conf.ready_wait_s);
		}
		all_known &= peer->known && peer->routed;
		all_have &= peer->phase >= PHASE_HAVE;
	}
	if (d->phase == PHASE_STARTING && all_known)
		set_phase(d, PHASE_HAVE);
	if (d->phase == PHASE_HAVE && all_have && d->conf.self == 0)
		set_phase(d, PHASE_READY);
	/* The others wait longer than the one who decides: silence of its is not its word. */
	if (d->phase < PHASE_READY &&
	    d->now_ns - d->started_ns > (d->conf.self ? 2 : 1) * d->conf.ready_wait_s * S)
		hello_off(d, origin, why[0] ? why : "some node did not get ready in time");
}

void hello_turn(struct daemon *d)
{
	for (unsigned i = 0; i < d->conf.nodes; i++) {
		struct peer *peer = &d->peer[i];
		bool settled = peer->known && peer->phase >= PHASE_READY && d->phase >= PHASE_READY;

		if (i == d->conf.self || d->now_ns < peer->next_hello_ns)
			continue;
		send_hello(d, peer, NULL);
		peer->hello_wait_ns = 3 * peer->hello_wait_ns / 2;
		if (peer->hello_wait_ns > HELLO_MAX_NS || settled)
			peer->hello_wait_ns = settled ? 10 * HELLO_MAX_NS : HELLO_MAX_NS;
		peer->next_hello_ns = d->now_ns + peer->hello_wait_ns;
	}
	if (d->phase < PHASE_READY)
		decide(d);
}
