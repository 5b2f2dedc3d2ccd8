/* Urgent probes reach the socket that is waited for, all others the one that is looked at once a tick. */
#include "check.h"
#include "daemon.h"
#include "diag.h"
#include "stamp.h"

#include <poll.h>
#include <string.h>
#include <sys/random.h>
#include <unistd.h>

static const uint8_t KEY[SIPHASH_KEY_BYTES];

static void configure(struct daemon *d, uint16_t port)
{
	memset(d, 0, sizeof(*d));
	d->conf.rails = 2;
	for (unsigned i = 0; i < CONF_PORTS; i++)
		d->conf.port[i] = (uint16_t)(port + i);
	d->conf.manage = (struct ip){AF_INET, {127, 0, 0, 3}};
	for (unsigned i = 0; i < d->conf.rails; i++) {
		struct conf_rail *conf = &d->conf.rail[i];

		strcpy(conf->name, "lo");
		conf->net4.ip = (struct ip){AF_INET, {127, 0, 0, (uint8_t)(1 + i)}};
		d->rail[i].conf = conf;
	}
}

/* Where ports of another run of this test, or of anybody, are in the way: others. */
static bool open_somewhere(struct daemon *d)
{
	char problem[160];
	uint16_t port;

	for (int i = 0; i < 20; i++) {
		if (getrandom(&port, sizeof(port), 0) != sizeof(port))
			return false;
		configure(d, (uint16_t)(1024 + port % 60000));
		if (sockets_open(d, problem, sizeof(problem)))
			return true;
	}
	return false;
}

static bool readable(int fd)
{
	struct pollfd one = {.fd = fd, .events = POLLIN};

	return poll(&one, 1, 1000) == 1;
}

static void send_flagged(struct daemon *d, unsigned rail, uint8_t flags)
{
	struct wire wire = {.type = WIRE_PROBE, .flags = flags, .rail = (uint8_t)rail, .rails = 2, .sequence = 4};
	struct target to = sockets_target(&d->conf.rail[rail].net4.ip, d->port, 0);
	uint8_t data[WIRE_MAX];
	size_t size = wire_encode(&wire, KEY, data);

	CHECK(sockets_send(d->rail[rail].socket, &to, data, size, false, false));
}

static void expect(struct daemon *d, unsigned rail, uint8_t flags)
{
	static struct received got[RECEIVE_BATCH];
	bool urgent = flags & WIRE_URGENT;
	int here = urgent ? d->rail[rail].urgent : d->rail[rail].socket;
	int elsewhere = urgent ? d->rail[rail].socket : d->rail[rail].urgent;
	struct wire wire;

	send_flagged(d, rail, flags);
	CHECK(readable(here));
	CHECK(sockets_receive(elsewhere, got) == 0);
	CHECK(sockets_receive(here, got) == 1);
	CHECK(wire_decode(&wire, KEY, got[0].data, got[0].size) && wire.flags == flags);
}

/* What waited in the socket when somebody set CLOCK_REALTIME came neither long ago nor later than now. */
static void a_step_of_the_system_clock_makes_no_packet_early(void)
{
	const uint64_t real = 1800000000 * S, step = 300 * MS;
	struct stamping stamping = {0};
	uint64_t now = 100 * S;

	stamping_look(&stamping, now, real + now);
	CHECK(stamping_mono_ns(&stamping, real + now - 2 * MS) == now - 2 * MS);
	now += 4 * MS;
	stamping_look(&stamping, now, real + now + step);
	CHECK(stamping_mono_ns(&stamping, real + now - 2 * MS) == now); /* stamped before */
	now += 10 * MS;
	stamping_look(&stamping, now, real + now + step); /* of another socket */
	CHECK(stamping_mono_ns(&stamping, real + now - 11 * MS) == now);
	now += 50 * MS;
	stamping_look(&stamping, now, real + now + step);
	CHECK(stamping_mono_ns(&stamping, real + now + step - 2 * MS) == now - 2 * MS);
}

struct seen {
	uint16_t port;
	unsigned over4;
};

static void see(const struct diag_socket *socket, void *arg)
{
	struct seen *seen = arg;

	seen->over4 += socket->to_port == seen->port && socket->to.family == AF_INET &&
		       socket->to.byte[0] == 127;
}

/* As gRPC, Java and Go have them: an IPv6 socket, connected over IPv4. */
static void streams_of_ipv6_sockets_over_ipv4_are_seen(void)
{
	struct sockaddr_in6 to = {.sin6_family = AF_INET6, .sin6_addr = {{{[10] = 0xff, [11] = 0xff, [12] = 127, [15] = 1}}}};
	const struct net nets[] = {{{AF_INET6, {[15] = 9}}, 128}, {{AF_INET, {127, 0, 0, 1}}, 32}};
	int there = socket(AF_INET6, SOCK_STREAM, 0), here = socket(AF_INET6, SOCK_STREAM, 0), off = 0;
	socklen_t size = sizeof(to);
	struct seen seen = {0};
	struct rtnl diag;

	if (there < 0)
		return; /* IPv6 is switched off */
	setsockopt(there, IPPROTO_IPV6, IPV6_V6ONLY, &off, sizeof(off));
	setsockopt(here, IPPROTO_IPV6, IPV6_V6ONLY, &off, sizeof(off));
	CHECK(bind(there, (struct sockaddr *)&to, size) == 0 && listen(there, 1) == 0);
	CHECK(getsockname(there, (struct sockaddr *)&to, &size) == 0);
	CHECK(connect(here, (struct sockaddr *)&to, size) == 0);
	seen.port = ntohs(to.sin6_port);
	CHECK(rtnl_open(&diag, NETLINK_SOCK_DIAG, 0) == 0);
	CHECK(diag_dump(&diag, AF_INET6, nets, 2, see, &seen) == 0);
	CHECK(seen.over4 == 1);
	rtnl_close(&diag);
	close(here);
	close(there);
}

int main(void)
{
	static struct daemon one, other;
	char problem[160];

	a_step_of_the_system_clock_makes_no_packet_early();
	streams_of_ipv6_sockets_over_ipv4_are_seen();
	if (!open_somewhere(&one)) {
		printf("no port could be had\n");
		return 1;
	}
	for (unsigned rail = 0; rail < 2; rail++) {
		CHECK(one.rail[rail].urgent >= 0);
		expect(&one, rail, 0);
		expect(&one, rail, WIRE_QUERY);
		expect(&one, rail, WIRE_LARGE);
		expect(&one, rail, WIRE_NEWS | WIRE_LARGE);
	}

	/* A second fabric-pathd that would like the same port is no partner of the first. */
	configure(&other, one.conf.port[0]);
	CHECK(sockets_open(&other, problem, sizeof(problem)) && other.port != one.port);
	expect(&one, 0, WIRE_NEWS);
	sockets_close(&other);
	sockets_close(&one);
	return check_failures != 0;
}
