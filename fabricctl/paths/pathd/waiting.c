/* Sleeping until the next tick, or until something comes that must not wait for it. */
#include "daemon.h"

#include <poll.h>
#include <sys/epoll.h>

#define URGENT_GAP_NS (MS / 4) /* whoever floods that socket wakes us no more often */

enum { WAIT_LINKS, WAIT_CONTROL, WAIT_MANAGE, WAIT_URGENT /* and one a rail from here */ };

/* Of the rails' sockets only those for urgent probes are waited for: the kernel stamps what arrives, and
 * one look a tick costs a fifth of one wake-up a packet. One epoll set, because ppoll asks each file. */
bool waiting_open(struct daemon *d)
{
	int fd[WAIT_URGENT + MAX_RAILS] = {d->monitor.fd, d->control, d->manage};

	d->waited = epoll_create1(EPOLL_CLOEXEC);
	for (unsigned i = 0; i < d->conf.rails; i++)
		fd[WAIT_URGENT + i] = d->rail[i].urgent;
	for (uint32_t i = 0; d->waited >= 0 && i < WAIT_URGENT + d->conf.rails; i++) {
		struct epoll_event event = {.events = EPOLLIN, .data.u32 = i};

		if (fd[i] >= 0 && epoll_ctl(d->waited, EPOLL_CTL_ADD, fd[i], &event) != 0)
			return false;
	}
	return d->waited >= 0;
}

static void serve(struct daemon *d)
{
	struct epoll_event event[WAIT_URGENT + MAX_RAILS];
	int count = epoll_wait(d->waited, event, WAIT_URGENT + MAX_RAILS, 0);

	for (int i = 0; i < count; i++) {
		if (event[i].data.u32 == WAIT_LINKS)
			links_read(d);
		else if (event[i].data.u32 == WAIT_CONTROL)
			control_serve(d);
		else if (event[i].data.u32 >= WAIT_URGENT)
			d->urgent_ns = d->now_ns;
		else if (d->phase >= PHASE_READY) /* hellos, which are no more in a hurry */
			epoll_ctl(d->waited, EPOLL_CTL_DEL, d->manage, NULL);
	}
}

void waiting_until(struct daemon *d, uint64_t until_ns, const sigset_t *waiting)
{
	uint64_t now = mono_ns(), again_ns = d->urgent_ns + URGENT_GAP_NS, left;
	struct pollfd any = {.fd = d->waited, .events = POLLIN};
	struct timespec timeout;

	if (now < again_ns) {
		any.fd = -1;
		until_ns = until_ns < again_ns ? until_ns : again_ns;
	}
	left = until_ns > now ? until_ns - now : 0;
	timeout = (struct timespec){(time_t)(left / S), (long)(left % S)};
	if (ppoll(&any, 1, &timeout, waiting) <= 0)
		return;
	d->now_ns = mono_ns();
	serve(d);
}
