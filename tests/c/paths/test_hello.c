/* Which of a peer's addresses are moved: those on a subnet that both ends share, of either family. */
#include "check.h"
#include "daemon.h"

#include <arpa/inet.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define OURS 11
#define THEIRS 22

struct ends {
	const char *ours4, *ours6, *theirs4, *theirs6;
};

static void put(struct net *net4, struct ip *ip6, const char *four, const char *six)
{
	if (four)
		CHECK(net_parse(four, net4));
	if (six)
		CHECK(ip_parse(six, ip6));
}

/* The peer, as it is after its hello. */
static struct peer *meet(struct daemon *d, const struct ends ends[2])
{
	static struct conf_node nodes[2] = {{.name = "n1"}, {.name = "n2"}};
	static struct peer peers[2];
	static const struct sockaddr_storage from;
	struct wire wire = {.type = WIRE_HELLO, .rails = 2, .from = 1, .session = THEIRS,
			    .to_session = OURS, .sequence = 1, .hello = {.phase = PHASE_READY, .port = 9}};

	memset(d, 0, sizeof(*d));
	memset(peers, 0, sizeof(peers));
	d->now_ns = 100 * S;
	d->phase = PHASE_READY;
	d->session = OURS;
	d->mover.rails = 2;
	d->events.fd = d->mover.rtnl.fd = d->monitor.fd = d->manage = -1; /* what is installed is seen in `route` */
	d->conf = (struct conf){.nodes = 2, .rails = 2, .own = true, .node = nodes};
	d->peer = peers;
	for (unsigned i = 0; i < 2; i++) {
		d->rail[i].conf = &d->conf.rail[i];
		d->rail[i].carrier = true;
		put(&d->conf.rail[i].net4, &d->conf.rail[i].ip6, ends[i].ours4, ends[i].ours6);
		put(&wire.hello.rail[i].net4, &wire.hello.rail[i].ip6, ends[i].theirs4, ends[i].theirs6);
		peers[i].node = &nodes[i];
		peers[i].number = i;
		pair_init(&peers[i].pair, 2, d->now_ns);
	}
	hello_received(d, &wire, &from);
	free(d->owner);
	CHECK(peers[1].known);
	return &peers[1];
}

static bool moved(const struct peer *peer, int family, unsigned rail)
{
	return peer->route.via[family][rail].family;
}

static void what_was_given_back_stays_so(struct daemon *d, struct peer *peer)
{
	char folder[] = "/tmp/fabric-hello-XXXXXX", lock[CONF_PATH];

	CHECK(mkdtemp(folder) != NULL);
	snprintf(d->conf.leases, sizeof(d->conf.leases), "%s", folder);
	peer->routed = true;
	hello_off(d, 0, "n1 cannot take part");
	moving_carrier(d, 0, false);
	CHECK(!peer->routed && !peer->reinstall); /* else it was tried */
	snprintf(lock, sizeof(lock), "%s/lock", folder);
	CHECK(unlink(lock) == 0 && rmdir(folder) == 0);
}

int main(void)
{
	static struct daemon d;
	struct peer *peer;

	/* Both families on one link; on the other the peer is behind a router. */
	peer = meet(&d, (struct ends[]){{"10.0.0.1/24", "fd00:1::1", "10.0.0.2/24", "fd00:1::2"},
					{"10.1.0.1/24", "fd00:2::1", "10.9.0.2/24", "fd00:9::2"}});
	CHECK(moved(peer, FAMILY4, 0) && moved(peer, FAMILY6, 0) && peer->probe[0].size);
	CHECK(!moved(peer, FAMILY4, 1) && !moved(peer, FAMILY6, 1) && !peer->probe[1].size);
	CHECK(peer->reinstall); /* tried: without a kernel */
	CHECK(pair_members(&peer->pair, 1) == 1 && peer->told_level[1] == LEVEL_DEAD);

	what_was_given_back_stays_so(&d, peer);

	/* IPv6 alone: the same /64, or the link's own addresses. */
	peer = meet(&d, (struct ends[]){{NULL, "fd00:1::1", NULL, "fd00:1::2"},
					{NULL, "fe80::1", NULL, "fe80::2"}});
	CHECK(moved(peer, FAMILY6, 0) && moved(peer, FAMILY6, 1));
	CHECK(peer->probe[0].address.ss_family == AF_INET6 && peer->probe[1].size);

	/* A routed fabric: nothing of it is ours to move, and nobody waits for its probes. */
	peer = meet(&d, (struct ends[]){{"10.0.0.1/24", "fd00:1::1", "10.5.0.2/24", "fd00:5::2"},
					{NULL, "fd00:2::1", NULL, "fd00:6::2"}});
	for (unsigned rail = 0; rail < 2; rail++)
		CHECK(!moved(peer, FAMILY4, rail) && !moved(peer, FAMILY6, rail) && !peer->probe[rail].size);
	CHECK(!peer->routed && !peer->reinstall);
	d.now_ns += 60 * S;
	moving_look(&d, peer);
	CHECK(!pair_in_doubt(&peer->pair, d.now_ns) && !peer->pair.stalled_ns);
	return check_failures != 0;
}
