/* What the system calls of one fabric-pathd with one busy peer on two rails cost, without one.
 *
 *   pair_floor SECONDS INTERVAL_US PORT ADDRESS ADDRESS     the peer's, on either rail
 *
 * Wakes up at real-time priority, looks at both sockets, sends on both; every fourth packet has the
 * size of the MTU. Prints its CPU time in ns and the turns it took. bench/pair.py runs one at each
 * end, beside what it measures. */
#include <arpa/inet.h>
#include <poll.h>
#include <sched.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <time.h>

enum { RAILS = 2, BATCH = 16, SMALL = 120, LARGE = 1472, LARGE_EVERY = 4, PRIORITY = 10 };

static uint64_t now_ns(clockid_t clock)
{
	struct timespec now;

	clock_gettime(clock, &now);
	return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

static int open_one(const char *address, uint16_t port)
{
	struct sockaddr_in self = {.sin_family = AF_INET, .sin_port = htons(port)};
	struct sockaddr_in peer = self;
	int fd = socket(AF_INET, SOCK_DGRAM | SOCK_NONBLOCK, 0), one = 1;

	if (inet_pton(AF_INET, address, &peer.sin_addr) != 1 ||
	    setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof(one)) ||
	    bind(fd, (struct sockaddr *)&self, sizeof(self)) ||
	    connect(fd, (struct sockaddr *)&peer, sizeof(peer))) {
		perror(address);
		exit(1);
	}
	return fd;
}

static void turn(const int fd[RAILS], unsigned long number)
{
	static char data[LARGE], got[BATCH][LARGE];
	struct iovec part[BATCH];
	struct mmsghdr many[BATCH];

	memset(many, 0, sizeof(many));
	for (int i = 0; i < BATCH; i++) {
		part[i] = (struct iovec){got[i], LARGE};
		many[i].msg_hdr.msg_iov = &part[i];
		many[i].msg_hdr.msg_iovlen = 1;
	}
	for (int i = 0; i < RAILS; i++)
		recvmmsg(fd[i], many, BATCH, MSG_DONTWAIT, NULL);
	for (int i = 0; i < RAILS; i++)
		send(fd[i], data, number % LARGE_EVERY == 0 ? LARGE : SMALL, MSG_DONTWAIT);
}

int main(int argc, char **argv)
{
	struct sched_param priority = {.sched_priority = PRIORITY};
	uint64_t end, due, interval;
	unsigned long turns = 0;
	int fd[RAILS];

	if (argc != 4 + RAILS)
		return 2;
	for (int i = 0; i < RAILS; i++)
		fd[i] = open_one(argv[4 + i], (uint16_t)(atoi(argv[3]) + i));
	mlockall(MCL_CURRENT | MCL_FUTURE);
	sched_setscheduler(0, SCHED_FIFO, &priority);
	interval = strtoull(argv[2], NULL, 10) * 1000;
	due = now_ns(CLOCK_MONOTONIC);
	end = due + strtoull(argv[1], NULL, 10) * 1000000000u;
	for (; due < end; turns++) {
		uint64_t now = now_ns(CLOCK_MONOTONIC), left;
		struct timespec wait;

		due = now > due + interval ? now : due + interval;
		left = due - now;
		wait = (struct timespec){(time_t)(left / 1000000000u), (long)(left % 1000000000u)};
		ppoll(NULL, 0, &wait, NULL);
		turn(fd, turns);
	}
	printf("%llu %lu\n", (unsigned long long)now_ns(CLOCK_PROCESS_CPUTIME_ID), turns);
	return 0;
}
