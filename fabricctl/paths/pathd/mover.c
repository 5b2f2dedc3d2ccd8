#include "mover.h"

#include <arpa/inet.h>
#include <errno.h>
#include <linux/nexthop.h>
#include <string.h>

#define METRIC_GROUP 10
#define METRIC_FALLBACK 20 /* + rail: the kernel's own choice in the moment a port loses carrier */
/* The fabric device itself, which drops: streams wait while no rail leads to the peer. UCX 1.20
 * takes a device only when none has a longer prefix for the peer (ucs_netlink_is_best_route). */
#define METRIC_LAST 1000

enum { ID_HOP4, ID_HOP6 = MAX_RAILS, ID_GROUP4 = 2 * MAX_RAILS, ID_GROUP6 = 3 * MAX_RAILS };

static uint32_t hop_id(const struct mover *mover, const struct mover_peer *peer, int family,
		       unsigned rail)
{
	unsigned kind = family == FAMILY4 ? ID_HOP4 : ID_HOP6;

	return FABRIC_NEXTHOP + (mover->slot << 18) + (peer->number + 1) * 32 + kind + rail;
}

static uint32_t last_id(const struct mover *mover, int family, unsigned rail)
{
	return FABRIC_NEXTHOP + (mover->slot << 18) + (family == FAMILY4 ? ID_HOP4 : ID_HOP6) + rail;
}

static uint32_t group_id(const struct mover *mover, const struct mover_peer *peer, int family,
			 unsigned rail)
{
	unsigned kind = family == FAMILY4 ? ID_GROUP4 : ID_GROUP6;

	return FABRIC_NEXTHOP + (mover->slot << 18) + (peer->number + 1) * 32 + kind + rail;
}

static int hop_set(struct mover *mover, const struct mover_peer *peer, int family, unsigned rail)
{
	const struct ip *via = &peer->via[family][rail];
	/* On-link: the site's own policy routing has no say in where the peer's port is. */
	struct nhmsg head = {
		.nh_family = via->family, .nh_protocol = FABRIC_PROTOCOL, .nh_flags = RTNH_F_ONLINK};
	struct rtnl_msg msg;

	rtnl_begin(&msg, RTM_NEWNEXTHOP, NLM_F_CREATE | NLM_F_REPLACE, &head, sizeof(head));
	rtnl_put_u32(&msg, NHA_ID, hop_id(mover, peer, family, rail));
	rtnl_put_u32(&msg, NHA_OIF, mover->ifindex[rail]);
	rtnl_put(&msg, NHA_GATEWAY, via->byte, ip_bytes(via));
	return rtnl_call(&mover->rtnl, &msg);
}

int mover_last_resorts(struct mover *mover)
{
	int error = 0;

	for (int family = 0; family < FAMILIES; family++)
		for (unsigned rail = 0; !error && rail < mover->rails; rail++) {
			struct nhmsg head = {.nh_family = mover->self[family][rail].family,
					     .nh_protocol = FABRIC_PROTOCOL};
			struct rtnl_msg msg;

			if (!head.nh_family)
				continue;
			rtnl_begin(&msg, RTM_NEWNEXTHOP, NLM_F_CREATE | NLM_F_REPLACE, &head,
				   sizeof(head));
			rtnl_put_u32(&msg, NHA_ID, last_id(mover, family, rail));
			rtnl_put_u32(&msg, NHA_OIF, mover->fabric_ifindex[rail]);
			error = rtnl_call(&mover->rtnl, &msg);
		}
	return error;
}

static int group_set(struct mover *mover, const struct mover_peer *peer, int family, unsigned rail,
		     uint8_t members)
{
	struct nhmsg head = {.nh_family = AF_UNSPEC, .nh_protocol = FABRIC_PROTOCOL};
	struct nexthop_grp hops[MAX_RAILS] = {0};
	struct rtnl_msg msg;
	size_t count = 0;

	for (unsigned other = 0; other < mover->rails; other++)
		if (members >> other & 1 && peer->via[family][other].family)
			hops[count++].id = hop_id(mover, peer, family, other);
	if (!count)
		return 0; /* nothing to carry it: the routes lead to the sink until there is */
	rtnl_begin(&msg, RTM_NEWNEXTHOP, NLM_F_CREATE | NLM_F_REPLACE, &head, sizeof(head));
	rtnl_put_u32(&msg, NHA_ID, group_id(mover, peer, family, rail));
	rtnl_put(&msg, NHA_GROUP, hops, count * sizeof(hops[0]));
	return rtnl_call(&mover->rtnl, &msg);
}

/* rto_min holds only where it is locked (net/ipv4/tcp_input.c, tcp_rto_min). Why the others: decisions 26 and 27. */
static void put_metrics(struct rtnl_msg *msg, unsigned rto_min_ms, const char *congestion,
			bool acks_at_once)
{
	size_t nest;

	if (!rto_min_ms && !congestion[0] && !acks_at_once)
		return;
	nest = rtnl_nest(msg, RTA_METRICS);
	if (rto_min_ms) {
		rtnl_put_u32(msg, RTAX_LOCK, 1u << RTAX_RTO_MIN);
		rtnl_put_u32(msg, RTAX_RTO_MIN, rto_min_ms);
	}
	if (congestion[0])
		rtnl_put_text(msg, RTAX_CC_ALGO, congestion);
	if (acks_at_once)
		rtnl_put_u32(msg, RTAX_QUICKACK, 1);
	rtnl_nest_end(msg, nest);
}

static void route_begin(struct rtnl_msg *msg, const struct net *to, uint32_t table,
			const struct ip *source)
{
	struct rtmsg head = {
		.rtm_family = to->ip.family,
		.rtm_dst_len = to->bits,
		.rtm_protocol = FABRIC_PROTOCOL,
		.rtm_scope = RT_SCOPE_UNIVERSE,
		.rtm_type = RTN_UNICAST,
	};

	rtnl_begin(msg, RTM_NEWROUTE, NLM_F_CREATE | NLM_F_REPLACE, &head, sizeof(head));
	rtnl_put(msg, RTA_DST, to->ip.byte, ip_bytes(&to->ip));
	rtnl_put_u32(msg, RTA_TABLE, table);
	if (source->family)
		rtnl_put(msg, RTA_PREFSRC, source->byte, ip_bytes(source));
}

static int route_set(struct mover *mover, const struct ip *to, const struct ip *source,
		     uint32_t metric, uint32_t hop, bool acks_at_once)
{
	struct net host = {*to, (uint8_t)(8 * ip_bytes(to))};
	char first = mover->congestion[0];
	struct rtnl_msg msg;
	int error;

	route_begin(&msg, &host, FABRIC_TABLE + mover->slot, source);
	rtnl_put_u32(&msg, RTA_PRIORITY, metric);
	rtnl_put_u32(&msg, RTA_NH_ID, hop);
	put_metrics(&msg, mover->rto_min_ms, mover->congestion, acks_at_once);
	error = rtnl_call(&mover->rtnl, &msg);
	if (error != -EINVAL || !mover->congestion[0])
		return error;
	mover->congestion[0] = '\0'; /* the kernel has none of that name: moving matters more */
	error = route_set(mover, to, source, metric, hop, acks_at_once);
	if (error) /* nor is it the name: the nexthop went with its port */
		mover->congestion[0] = first;
	return error;
}

/* Link-local addresses mean something on one link only: they are not moved. */
static bool moves_own(const struct mover *mover, const struct mover_peer *peer, int family,
		      unsigned rail)
{
	const struct ip *via = &peer->via[family][rail];

	return mover->own[family][rail].family && via->family &&
	       !(via->family == AF_INET6 && via->byte[0] == 0xfe && (via->byte[1] & 0xc0) == 0x80);
}

static bool moves_fabric(const struct mover *mover, const struct mover_peer *peer, int family,
			 unsigned rail)
{
	return mover->self[family][rail].family && peer->fabric[family][rail].family;
}

static int install_routes(struct mover *mover, struct mover_peer *peer, int family, unsigned rail,
			  const struct ip *to, const struct ip *source)
{
	int error = 0;

	if (peer->members[rail] & peer->usable)
		error = route_set(mover, to, source, METRIC_GROUP,
				  group_id(mover, peer, family, rail), peer->acks_at_once);
	for (unsigned other = 0; !error && other < mover->rails; other++)
		if (peer->usable >> other & 1 && peer->via[family][other].family)
			error = route_set(mover, to, source, METRIC_FALLBACK + other,
					  hop_id(mover, peer, family, other), peer->acks_at_once);
	return error;
}

static int install_address(struct mover *mover, struct mover_peer *peer, int family, unsigned rail)
{
	bool fabric = moves_fabric(mover, peer, family, rail);
	bool own = moves_own(mover, peer, family, rail);
	const struct ip *to = &peer->fabric[family][rail];
	const struct ip *source = &mover->self[family][rail];
	int error = 0;

	if (fabric || own)
		error = group_set(mover, peer, family, rail, peer->members[rail] & peer->usable);
	if (fabric && !error)
		error = install_routes(mover, peer, family, rail, to, source);
	if (fabric && !error)
		error = route_set(mover, to, source, METRIC_LAST, last_id(mover, family, rail),
				  peer->acks_at_once);
	if (own && !error)
		error = install_routes(mover, peer, family, rail, &peer->via[family][rail],
				       &mover->own[family][rail]);
	return error;
}

static int install_addresses(struct mover *mover, struct mover_peer *peer)
{
	int error = 0;

	for (int family = 0; family < FAMILIES; family++)
		for (unsigned rail = 0; !error && rail < mover->rails; rail++)
			error = install_address(mover, peer, family, rail);
	return error;
}

int mover_peer_acks(struct mover *mover, struct mover_peer *peer, bool at_once)
{
	peer->acks_at_once = at_once;
	return install_addresses(mover, peer);
}

int mover_peer_install(struct mover *mover, struct mover_peer *peer, uint8_t carrier)
{
	int error = 0;

	peer->usable = 0;
	for (unsigned rail = 0; rail < mover->rails; rail++) {
		bool any = false;

		for (int family = 0; family < FAMILIES && carrier >> rail & 1; family++) {
			if (!peer->via[family][rail].family)
				continue;
			error = hop_set(mover, peer, family, rail);
			if (error == -ENETDOWN || error == -ENODEV || error == -EHOSTDOWN) {
				error = 0; /* the port went down since: its event is on the way */
				any = false;
				break;
			}
			if (error)
				return error;
			any = true;
		}
		if (any)
			peer->usable |= (uint8_t)(1u << rail);
	}
	return install_addresses(mover, peer);
}

int mover_peer_set(struct mover *mover, struct mover_peer *peer, unsigned rail, uint8_t members)
{
	int error = 0;

	for (int family = 0; !error && family < FAMILIES; family++)
		if (moves_fabric(mover, peer, family, rail) || moves_own(mover, peer, family, rail))
			error = group_set(mover, peer, family, rail, members & peer->usable);
	if (!error)
		peer->members[rail] = members;
	return error;
}

int mover_sink_add(struct rtnl *rtnl, const struct net *part, const struct ip *source,
		   unsigned ifindex, unsigned rto_min_ms)
{
	struct rtnl_msg msg;

	route_begin(&msg, part, RT_TABLE_MAIN, source);
	rtnl_put_u32(&msg, RTA_OIF, ifindex);
	put_metrics(&msg, rto_min_ms, "", false);
	return rtnl_call(rtnl, &msg);
}

struct loading {
	const struct mover *mover;
	mover_each *each;
	void *arg;
};

static void see_group(const struct nlmsghdr *head, void *arg)
{
	const struct rtattr *table[NHA_MAX + 1];
	const struct loading *loading = arg;
	const struct nexthop_grp *hops;
	uint32_t id, local, kind;
	uint8_t members = 0;

	rtnl_parse(head, sizeof(struct nhmsg), table, NHA_MAX + 1);
	id = rtnl_u32(table[NHA_ID]);
	local = id & ((1u << 18) - 1);
	kind = local % 32;
	if (!table[NHA_GROUP] || id - local != FABRIC_NEXTHOP + (loading->mover->slot << 18) ||
	    local < 32 || kind < ID_GROUP4)
		return;
	hops = RTA_DATA(table[NHA_GROUP]);
	for (size_t i = 0; i < RTA_PAYLOAD(table[NHA_GROUP]) / sizeof(*hops); i++)
		members |= (uint8_t)(1u << hops[i].id % MAX_RAILS);
	loading->each(local / 32 - 1, kind % MAX_RAILS, members, loading->arg);
}

int mover_load(struct mover *mover, mover_each *each, void *arg)
{
	struct loading loading = {mover, each, arg};
	struct nhmsg head = {.nh_family = AF_UNSPEC};
	struct rtnl_msg msg;

	rtnl_begin(&msg, RTM_GETNEXTHOP, 0, &head, sizeof(head));
	return rtnl_dump(&mover->rtnl, &msg, see_group, &loading);
}
