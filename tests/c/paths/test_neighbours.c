/* Whose link-layer addresses are asked for again, and how many at a time. The kernel is a child process that
 * has found none of them. */
#include "check.h"
#include "daemon.h"

#include <linux/neighbour.h>
#include <linux/netlink.h>
#include <linux/rtnetlink.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#define NODES 200
#define TURN_NS (50 * MS)

static void answer(int fd, const struct nlmsghdr *asked)
{
	struct {
		struct nlmsghdr head;
		struct ndmsg body;
	} found = {{sizeof(found), RTM_NEWNEIGH, 0, asked->nlmsg_seq, 0}, {.ndm_state = NUD_INCOMPLETE}};
	struct {
		struct nlmsghdr head;
		struct nlmsgerr body;
	} done = {{sizeof(done), NLMSG_ERROR, 0, asked->nlmsg_seq, 0}, {.error = 0}};

	if (asked->nlmsg_type == RTM_GETNEIGH && send(fd, &found, sizeof(found), 0) < 0)
		_exit(1);
	if (send(fd, &done, sizeof(done), 0) < 0)
		_exit(1);
}

/* Tells the last byte of each address that is to be forgotten, before it answers. */
static _Noreturn void be_the_kernel(int fd, int forgotten)
{
	_Alignas(struct nlmsghdr) char data[4096];

	while (recv(fd, data, sizeof(data), 0) > 0) {
		const struct nlmsghdr *asked = (const struct nlmsghdr *)data;
		const struct rtattr *table[NDA_MAX + 1];

		rtnl_parse(asked, sizeof(struct ndmsg), table, NDA_MAX + 1);
		if (asked->nlmsg_type == RTM_DELNEIGH &&
		    write(forgotten, (const uint8_t *)RTA_DATA(table[NDA_DST]) + 3, 1) != 1)
			_exit(1);
		answer(fd, asked);
	}
	_exit(0);
}

static void begin(struct daemon *d, int fd)
{
	d->now_ns = 100 * S;
	d->events.fd = -1;
	d->conf.nodes = NODES;
	d->conf.rails = 2;
	d->mover.rtnl.fd = fd;
	d->peer = calloc(NODES, sizeof(*d->peer));
	for (unsigned i = 0; i < NODES; i++) {
		struct ip ip = {AF_INET, {10, 0, 0, (uint8_t)i}};

		pair_init(&d->peer[i].pair, 2, d->now_ns);
		d->peer[i].pair.path[0].listening = GONE;
		for (unsigned k = 0; k < 2 && i; k++) /* the first is this node */
			d->peer[i].probe[k] = sockets_target(&ip, 1, 0);
	}
}

/* Of this turn; counts them by peer. */
static unsigned turn(struct daemon *d, int forgotten, unsigned asked[NODES])
{
	uint8_t data[1024];
	ssize_t got;

	d->now_ns += TURN_NS;
	neighbours_turn(d);
	if (write(forgotten + 1, "", 1) != 1) /* there is always something to read */
		return NODES;
	got = read(forgotten, data, sizeof(data));
	for (ssize_t i = 0; i + 1 < got; i++)
		asked[data[i]]++;
	return (unsigned)got - 1;
}

int main(void)
{
	static struct daemon d;
	unsigned asked[NODES] = {0}, all = 0, least = 1000, most = 0;
	int fd[2], forgotten[2];

	if (socketpair(AF_UNIX, SOCK_SEQPACKET, 0, fd) || pipe(forgotten) || forgotten[1] != forgotten[0] + 1)
		return 1;
	if (fork() == 0) {
		close(fd[0]);
		be_the_kernel(fd[1], forgotten[1]);
	}
	close(fd[1]);
	begin(&d, fd[0]);
	d.rail[1].carrier = true;

	/* Our own port is without carrier, then it is back. */
	CHECK(turn(&d, forgotten[0], asked) == 0);
	moving_carrier(&d, 0, true);
	for (unsigned i = 0; i < 10; i++) {
		unsigned now = turn(&d, forgotten[0], asked);

		CHECK(now > 50 && now < 70);
		all += now;
	}
	for (unsigned i = 1; i < NODES; i++) {
		least = asked[i] < least ? asked[i] : least;
		most = asked[i] > most ? asked[i] : most;
	}
	CHECK(all > 500 && least >= 3 && most <= 4 && asked[0] == 0);

	/* Whoever is heard is not asked for; nor the others for ever, but for those with traffic. */
	for (unsigned i = 0; i < NODES; i++)
		d.peer[i].pair.path[0].listening = i == 7 || i == 9 ? GONE : HEARD;
	CHECK(turn(&d, forgotten[0], asked) == 2);
	d.now_ns += 10 * S;
	CHECK(turn(&d, forgotten[0], asked) == 0);
	d.peer[9].active_until_ns = d.now_ns + S;
	memset(asked, 0, sizeof(asked));
	CHECK(turn(&d, forgotten[0], asked) == 1 && asked[9] == 1);

	close(fd[0]);
	free(d.peer);
	wait(NULL);
	return check_failures != 0;
}
