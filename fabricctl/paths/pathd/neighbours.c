/* Link-layer addresses of peers on rails that fell silent. The kernel asks for one (ARP, neighbour
 * discovery) as soon as a packet needs it, and again only after a second (retrans_time_ms of arp(7)). The
 * first question after a cable is back is often lost: the switch's port does not forward yet. So
 * questions without an answer are forgotten here, and the next probe asks anew. */
#include "daemon.h"

#include <linux/neighbour.h>

#define ASK_AGAIN_NS (50 * MS)
#define ASK_MOST 64 /* a turn: each is a call or two of the kernel, some microseconds */

static void begin(struct rtnl_msg *msg, uint16_t type, unsigned ifindex, const struct sockaddr_storage *to)
{
	struct ndmsg head = {.ndm_family = (uint8_t)to->ss_family, .ndm_ifindex = (int)ifindex};

	rtnl_begin(msg, type, 0, &head, sizeof(head));
	if (to->ss_family == AF_INET6)
		rtnl_put(msg, NDA_DST, &((const struct sockaddr_in6 *)to)->sin6_addr, sizeof(struct in6_addr));
	else
		rtnl_put(msg, NDA_DST, &((const struct sockaddr_in *)to)->sin_addr, sizeof(struct in_addr));
}

static void see_state(const struct nlmsghdr *head, void *arg)
{
	if (head->nlmsg_type == RTM_NEWNEIGH)
		*(uint16_t *)arg = ((const struct ndmsg *)NLMSG_DATA(head))->ndm_state;
}

static void ask_again(struct daemon *d, unsigned rail, const struct sockaddr_storage *to)
{
	struct rtnl_msg msg;
	uint16_t state = NUD_NONE;

	/* Behind a router there is none of this address: then the route's own is not our business. */
	begin(&msg, RTM_GETNEIGH, d->rail[rail].ifindex, to);
	if (rtnl_ask(&d->mover.rtnl, &msg, see_state, &state) || !(state & (NUD_INCOMPLETE | NUD_FAILED)))
		return;
	begin(&msg, RTM_DELNEIGH, d->rail[rail].ifindex, to);
	rtnl_call(&d->mover.rtnl, &msg);
}

/* The streams of a peer with traffic wait for it. After our own cable is back so does everybody: one
 * question a second would be all that the others get. */
static bool is_wanted(const struct daemon *d, const struct peer *peer, unsigned rail)
{
	const struct path *path = &peer->pair.path[rail];
	bool soon = d->now_ns < peer->active_until_ns || d->now_ns < d->rail[rail].ask_until_ns;

	/* Not heard, or says that we are not. */
	return soon && d->rail[rail].carrier && peer->probe[rail].size &&
	       (path->listening == GONE || path->peer_level == LEVEL_DEAD);
}

void neighbours_turn(struct daemon *d)
{
	unsigned asked = 0, first = d->next_neighbour;

	if (d->now_ns < d->next_neighbours_ns)
		return;
	d->next_neighbours_ns = d->now_ns + ASK_AGAIN_NS;
	for (unsigned i = 0; i < d->conf.nodes && asked < ASK_MOST; i++) {
		unsigned at = (first + i) % d->conf.nodes; /* those that were not reached come first */
		const struct peer *peer = &d->peer[at];

		for (unsigned k = 0; k < d->conf.rails; k++)
			if (is_wanted(d, peer, k)) {
				ask_again(d, k, &peer->probe[k].address);
				asked++;
			}
		d->next_neighbour = at + 1;
	}
}
