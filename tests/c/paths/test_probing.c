/* What a peer is promised, and how quickly it is asked in doubt: of one without traffic a late probe is
 * no news, or busy nodes would ask each other all the time and be busy with that. */
#include "check.h"
#include "daemon.h"

#include <arpa/inet.h>
#include <string.h>
#include <unistd.h>

#define NOW (100 * S)
#define INTERVAL_US 4000

static const uint8_t KEY[SIPHASH_KEY_BYTES];

/* The other end of our one rail. */
static int open_end(struct peer *peer)
{
	struct sockaddr_in at = {.sin_family = AF_INET, .sin_addr = {htonl(INADDR_LOOPBACK)}};
	int fd = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
	socklen_t size = sizeof(at);

	CHECK(fd >= 0 && bind(fd, (struct sockaddr *)&at, size) == 0);
	CHECK(getsockname(fd, (struct sockaddr *)&at, &size) == 0);
	memcpy(&peer->probe[0].address, &at, sizeof(at));
	peer->probe[0].size = size;
	return fd;
}

static void configure(struct daemon *d, struct peer *peer)
{
	memset(d, 0, sizeof(*d));
	memset(peer, 0, sizeof(*peer));
	d->now_ns = NOW;
	d->conf.nodes = 2;
	d->conf.rails = 1;
	d->conf.interval_us = INTERVAL_US;
	d->conf.budget_pps = 4000;
	d->active = 1;
	d->rail[0].carrier = true;
	d->rail[0].mtu = 1500;
	peer->known = true;
	pair_init(&peer->pair, 1, NOW);
}

static uint64_t promised_ns(bool active)
{
	struct daemon d;
	struct peer peer;
	struct wire wire = {0};
	uint8_t data[WIRE_MAX];
	ssize_t size;
	int end;

	configure(&d, &peer);
	peer.active_until_ns = active ? NOW + S : 0;
	end = open_end(&peer);
	d.rail[0].socket = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
	probing_send(&d, &peer, 0);
	size = recv(end, data, sizeof(data), 0);
	CHECK(size > 0 && wire_decode(&wire, KEY, data, (size_t)size));
	close(end);
	close(d.rail[0].socket);
	return wire.probe.next_us * 1000ull;
}

static void test_an_idle_peers_next_probe_may_be_late_by_some_ticks(void)
{
	struct daemon d;
	struct peer peer;

	configure(&d, &peer);
	CHECK(promised_ns(false) >= probing_interval_ns(&d, &peer) + 2 * 20 * MS);
}

static void test_that_of_a_busy_one_comes_when_it_was_promised(void)
{
	CHECK(promised_ns(true) == INTERVAL_US * 1000ull);
}

static void test_doubt_is_quick_where_traffic_waits_for_it(void)
{
	struct daemon d;
	struct peer peer;

	configure(&d, &peer);
	CHECK(probing_doubt_ns(&d, &peer) >= INTERVAL_US * 1000ull);
	peer.active_until_ns = NOW + S;
	CHECK(probing_doubt_ns(&d, &peer) < MS);
	peer.pair.stalled_ns = NOW - S; /* silent everywhere, and for long */
	CHECK(probing_doubt_ns(&d, &peer) >= 20 * MS);
}

int main(void)
{
	test_an_idle_peers_next_probe_may_be_late_by_some_ticks();
	test_that_of_a_busy_one_comes_when_it_was_promised();
	test_doubt_is_quick_where_traffic_waits_for_it();
	return check_failures != 0;
}
