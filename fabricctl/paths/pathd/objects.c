/* Devices, addresses and rules, and the removal of everything that is ours. */
#include "mover.h"

#include <errno.h>
#include <linux/fib_rules.h>
#include <linux/if_addr.h>
#include <linux/nexthop.h>
#include <net/if.h>
#include <stdlib.h>
#include <string.h>

/* A device type that exists everywhere is not to be had: dummy where the kernel has it, else ifb.
 * Both swallow what is sent through them, and neither has carrier to lose. */
static const char *const DEVICE_KINDS[] = {"dummy", "ifb"};

#define HELD_LABEL "lo:fabric" /* of what is kept on the loopback device; IPv6 has no labels */

#ifndef IFA_PROTO
#define IFA_PROTO 11 /* Linux 5.18; older kernels ignore it */
#endif

#define TRIES 5 /* of a dump that the kernel calls inconsistent */

struct found {
	unsigned slot;
	uint32_t *ids; /* nexthop ids or ifindexes */
	size_t count, room;
};

struct holder {
	const char *name;
	bool exists, ours;
};

static bool link_is_ours(const struct nlmsghdr *head)
{
	const struct rtattr *table[IFLA_MAX + 1];

	rtnl_parse(head, sizeof(struct ifinfomsg), table, IFLA_MAX + 1);
	return rtnl_u32(table[IFLA_GROUP]) == FABRIC_GROUP;
}

static void see_holder(const struct nlmsghdr *head, void *arg)
{
	const struct rtattr *table[IFLA_MAX + 1];
	struct holder *holder = arg;

	rtnl_parse(head, sizeof(struct ifinfomsg), table, IFLA_MAX + 1);
	if (!table[IFLA_IFNAME] || strcmp(RTA_DATA(table[IFLA_IFNAME]), holder->name) != 0)
		return;
	holder->exists = true;
	holder->ours = link_is_ours(head);
}

static int dump(struct rtnl *rtnl, uint16_t type, const void *head, size_t size, rtnl_each *each,
		struct found *found)
{
	struct rtnl_msg msg;
	int error = -EINTR;

	for (int i = 0; i < TRIES && error == -EINTR; i++) {
		if (found)
			found->count = 0;
		rtnl_begin(&msg, type, 0, head, size);
		error = rtnl_dump(rtnl, &msg, each, found);
	}
	return error;
}

static int device_create(struct rtnl *rtnl, const char *name, const char *kind, unsigned mtu)
{
	struct ifinfomsg head = {.ifi_family = AF_UNSPEC};
	struct rtnl_msg msg;
	size_t nest;

	rtnl_begin(&msg, RTM_NEWLINK, NLM_F_CREATE | NLM_F_EXCL, &head, sizeof(head));
	rtnl_put_text(&msg, IFLA_IFNAME, name);
	rtnl_put_u32(&msg, IFLA_MTU, mtu);
	rtnl_put_u32(&msg, IFLA_GROUP, FABRIC_GROUP); /* ours from its first moment on */
	nest = rtnl_nest(&msg, IFLA_LINKINFO);
	rtnl_put_text(&msg, IFLA_INFO_KIND, kind);
	rtnl_nest_end(&msg, nest);
	return rtnl_call(rtnl, &msg);
}

/* The alias is for people: `ip link` shows it. */
int mover_device_up(struct rtnl *rtnl, unsigned ifindex)
{
	struct ifinfomsg head = {.ifi_family = AF_UNSPEC, .ifi_index = (int)ifindex};
	struct rtnl_msg msg;
	int error;

	rtnl_begin(&msg, RTM_NEWLINK, 0, &head, sizeof(head));
	rtnl_put(&msg, IFLA_IFALIAS, FABRIC_ALIAS, strlen(FABRIC_ALIAS));
	error = rtnl_call(rtnl, &msg);
	if (error)
		return error;
	head.ifi_flags = head.ifi_change = IFF_UP;
	rtnl_begin(&msg, RTM_NEWLINK, 0, &head, sizeof(head));
	return rtnl_call(rtnl, &msg);
}

int mover_device_add(struct rtnl *rtnl, const char *name, unsigned mtu, const char **what)
{
	struct ifinfomsg head = {.ifi_family = AF_UNSPEC};
	struct holder holder = {.name = name};
	struct rtnl_msg msg;
	int error;

	*what = name;
	rtnl_begin(&msg, RTM_GETLINK, 0, &head, sizeof(head));
	error = rtnl_dump(rtnl, &msg, see_holder, &holder);
	if (error && error != -EINTR)
		return error;
	if (holder.exists && !holder.ours) {
		*what = "another device has the name";
		return -EEXIST;
	}
	for (size_t i = 0; !holder.exists && i < sizeof(DEVICE_KINDS) / sizeof(DEVICE_KINDS[0]); i++) {
		*what = DEVICE_KINDS[i];
		error = device_create(rtnl, name, DEVICE_KINDS[i], mtu);
		if (error != -EOPNOTSUPP)
			break;
	}
	return error;
}

int mover_address_add(struct rtnl *rtnl, unsigned ifindex, const struct ip *ip)
{
	struct ifaddrmsg head = {
		.ifa_family = ip->family,
		.ifa_prefixlen = (uint8_t)(8 * ip_bytes(ip)),
		.ifa_flags = ip->family == AF_INET6 ? IFA_F_NODAD : 0, /* usable at once */
		.ifa_index = ifindex,
	};
	struct rtnl_msg msg;

	rtnl_begin(&msg, RTM_NEWADDR, NLM_F_CREATE | NLM_F_REPLACE, &head, sizeof(head));
	rtnl_put(&msg, IFA_LOCAL, ip->byte, ip_bytes(ip));
	rtnl_put(&msg, IFA_ADDRESS, ip->byte, ip_bytes(ip));
	return rtnl_call(rtnl, &msg);
}

int mover_rule_add(struct rtnl *rtnl, const struct net *pool, unsigned slot)
{
	struct fib_rule_hdr head = {
		.family = pool->ip.family, .dst_len = pool->bits, .action = FR_ACT_TO_TBL};
	uint8_t protocol = FABRIC_PROTOCOL;
	struct rtnl_msg msg;
	int error;

	rtnl_begin(&msg, RTM_NEWRULE, NLM_F_CREATE | NLM_F_EXCL, &head, sizeof(head));
	rtnl_put(&msg, FRA_DST, pool->ip.byte, ip_bytes(&pool->ip));
	rtnl_put_u32(&msg, FRA_PRIORITY, FABRIC_RULE_BASE + slot);
	rtnl_put_u32(&msg, FRA_TABLE, FABRIC_TABLE + slot);
	rtnl_put(&msg, FRA_PROTOCOL, &protocol, sizeof(protocol));
	error = rtnl_call(rtnl, &msg);
	return error == -EEXIST ? 0 : error;
}

int mover_user_rule_add(struct rtnl *rtnl, int family, uint32_t uid, unsigned slot)
{
	struct fib_rule_hdr head = {.family = (uint8_t)family, .action = FR_ACT_TO_TBL};
	struct fib_rule_uid_range range = {uid, uid};
	uint8_t protocol = FABRIC_PROTOCOL;
	struct rtnl_msg msg;
	int error;

	rtnl_begin(&msg, RTM_NEWRULE, NLM_F_CREATE | NLM_F_EXCL, &head, sizeof(head));
	rtnl_put(&msg, FRA_UID_RANGE, &range, sizeof(range));
	rtnl_put_u32(&msg, FRA_PRIORITY, FABRIC_RULE_BASE + slot);
	rtnl_put_u32(&msg, FRA_TABLE, FABRIC_TABLE + slot);
	rtnl_put(&msg, FRA_PROTOCOL, &protocol, sizeof(protocol));
	error = rtnl_call(rtnl, &msg);
	return error == -EEXIST ? 0 : error;
}

int mover_hold_address(struct rtnl *rtnl, const struct ip *ip)
{
	struct ifaddrmsg head = {
		.ifa_family = ip->family,
		.ifa_prefixlen = (uint8_t)(8 * ip_bytes(ip)),
		.ifa_flags = ip->family == AF_INET6 ? IFA_F_NODAD : 0,
		.ifa_index = if_nametoindex("lo"),
	};
	uint8_t protocol = FABRIC_PROTOCOL;
	struct rtnl_msg msg;

	rtnl_begin(&msg, RTM_NEWADDR, NLM_F_CREATE | NLM_F_REPLACE, &head, sizeof(head));
	rtnl_put(&msg, IFA_LOCAL, ip->byte, ip_bytes(ip));
	rtnl_put(&msg, IFA_ADDRESS, ip->byte, ip_bytes(ip));
	if (ip->family == AF_INET)
		rtnl_put_text(&msg, IFA_LABEL, HELD_LABEL);
	rtnl_put(&msg, IFA_PROTO, &protocol, sizeof(protocol));
	return rtnl_call(rtnl, &msg);
}

static void keep(struct found *found, uint32_t id)
{
	if (found->count == found->room) {
		size_t room = found->room ? 2 * found->room : 64;
		uint32_t *ids = realloc(found->ids, room * sizeof(*ids));

		if (!ids)
			return; /* the caller comes again until nothing is left */
		found->ids = ids;
		found->room = room;
	}
	found->ids[found->count++] = id;
}

static void see_hop(const struct nlmsghdr *head, void *arg)
{
	const struct nhmsg *hop = NLMSG_DATA(head);
	const struct rtattr *table[NHA_MAX + 1];
	struct found *found = arg;
	uint32_t id, slot;

	rtnl_parse(head, sizeof(*hop), table, NHA_MAX + 1);
	id = rtnl_u32(table[NHA_ID]);
	slot = (id - FABRIC_NEXTHOP) >> 18;
	if (hop->nh_protocol == FABRIC_PROTOCOL && id >= FABRIC_NEXTHOP && slot < FABRIC_SLOTS &&
	    (found->slot == FABRIC_SLOTS || slot == found->slot))
		keep(found, id);
}

/* Keeps the family in bit 31 and the slot below. */
static void see_rule(const struct nlmsghdr *head, void *arg)
{
	const struct fib_rule_hdr *rule = NLMSG_DATA(head);
	const struct rtattr *table[FRA_MAX + 1];
	struct found *found = arg;
	uint32_t slot;

	rtnl_parse(head, sizeof(*rule), table, FRA_MAX + 1);
	slot = rtnl_u32(table[FRA_TABLE]) - FABRIC_TABLE;
	if (!table[FRA_PROTOCOL] || *(uint8_t *)RTA_DATA(table[FRA_PROTOCOL]) != FABRIC_PROTOCOL ||
	    slot >= FABRIC_SLOTS || (found->slot != FABRIC_SLOTS && slot != found->slot))
		return;
	keep(found, slot | (rule->family == AF_INET6 ? 1u << 31 : 0));
}

static void see_link(const struct nlmsghdr *head, void *arg)
{
	if (link_is_ours(head))
		keep(arg, (uint32_t)((const struct ifinfomsg *)NLMSG_DATA(head))->ifi_index);
}

/* Held addresses are few: kept whole, as family and bytes in five words. */
static void see_held(const struct nlmsghdr *head, void *arg)
{
	const struct ifaddrmsg *address = NLMSG_DATA(head);
	const struct rtattr *table[IFA_PROTO + 1], *local;
	uint32_t words[4] = {0};
	bool ours;

	rtnl_parse(head, sizeof(*address), table, IFA_PROTO + 1);
	local = table[IFA_LOCAL] ? table[IFA_LOCAL] : table[IFA_ADDRESS];
	ours = (table[IFA_PROTO] && *(uint8_t *)RTA_DATA(table[IFA_PROTO]) == FABRIC_PROTOCOL) ||
	       (table[IFA_LABEL] && !strcmp(RTA_DATA(table[IFA_LABEL]), HELD_LABEL));
	if (!ours || !local || RTA_PAYLOAD(local) > sizeof(words))
		return;
	memcpy(words, RTA_DATA(local), RTA_PAYLOAD(local));
	keep(arg, address->ifa_family);
	for (int i = 0; i < 4; i++)
		keep(arg, words[i]);
}

static int held_remove(struct rtnl *rtnl, const uint32_t words[5])
{
	struct ifaddrmsg head = {.ifa_family = (uint8_t)words[0],
				 .ifa_prefixlen = words[0] == AF_INET6 ? 128 : 32,
				 .ifa_index = if_nametoindex("lo")};
	struct rtnl_msg msg;

	rtnl_begin(&msg, RTM_DELADDR, 0, &head, sizeof(head));
	rtnl_put(&msg, IFA_LOCAL, words + 1, words[0] == AF_INET6 ? 16 : 4);
	return rtnl_call(rtnl, &msg);
}

static int clean_held(struct rtnl *rtnl)
{
	struct ifaddrmsg head = {.ifa_family = AF_UNSPEC};
	struct found found = {.slot = FABRIC_SLOTS};
	int removed = 0, error = dump(rtnl, RTM_GETADDR, &head, sizeof(head), see_held, &found);

	for (size_t i = 0; !error && i + 5 <= found.count; i += 5)
		removed += held_remove(rtnl, found.ids + i) == 0;
	free(found.ids);
	return error ? error : removed;
}

static int rule_remove(struct rtnl *rtnl, uint32_t kept)
{
	struct fib_rule_hdr head = {.family = kept >> 31 ? AF_INET6 : AF_INET,
				    .action = FR_ACT_TO_TBL};
	uint32_t slot = kept & ~(1u << 31);
	uint8_t protocol = FABRIC_PROTOCOL;
	struct rtnl_msg msg;

	rtnl_begin(&msg, RTM_DELRULE, 0, &head, sizeof(head));
	rtnl_put_u32(&msg, FRA_PRIORITY, FABRIC_RULE_BASE + slot);
	rtnl_put_u32(&msg, FRA_TABLE, FABRIC_TABLE + slot);
	rtnl_put(&msg, FRA_PROTOCOL, &protocol, sizeof(protocol));
	return rtnl_call(rtnl, &msg);
}

static int hop_remove(struct rtnl *rtnl, uint32_t id)
{
	struct nhmsg head = {.nh_family = AF_UNSPEC};
	struct rtnl_msg msg;

	rtnl_begin(&msg, RTM_DELNEXTHOP, 0, &head, sizeof(head));
	rtnl_put_u32(&msg, NHA_ID, id);
	return rtnl_call(rtnl, &msg);
}

static int link_remove(struct rtnl *rtnl, uint32_t ifindex)
{
	struct ifinfomsg head = {.ifi_family = AF_UNSPEC, .ifi_index = (int)ifindex};
	struct rtnl_msg msg;

	rtnl_begin(&msg, RTM_DELLINK, 0, &head, sizeof(head));
	return rtnl_call(rtnl, &msg);
}

struct kind {
	uint16_t get;
	rtnl_each *see;
	int (*remove)(struct rtnl *rtnl, uint32_t id);
};

/* Finds all of one kind and removes it; what is already gone (a nexthop takes its groups and
 * routes along, a device its addresses) does not count. */
static int clean_kind(struct rtnl *rtnl, const struct kind *kind, unsigned slot)
{
	union {
		struct nhmsg hop;
		struct fib_rule_hdr rule;
		struct ifinfomsg link;
	} head = {0};
	size_t size = kind->get == RTM_GETLINK ? sizeof(head.link) :
		      kind->get == RTM_GETRULE ? sizeof(head.rule) : sizeof(head.hop);
	struct found found = {.slot = slot};
	int removed = 0;
	int error = dump(rtnl, kind->get, &head, size, kind->see, &found);

	for (size_t i = 0; !error && i < found.count; i++) {
		int result = kind->remove(rtnl, found.ids[i]);

		if (!result)
			removed++;
		else if (result != -ENOENT && result != -ENODEV && result != -EAFNOSUPPORT)
			error = result;
	}
	free(found.ids);
	return error ? error : removed;
}

int mover_clean(struct rtnl *rtnl, unsigned slot)
{
	static const struct kind RULES = {RTM_GETRULE, see_rule, rule_remove};
	static const struct kind HOPS = {RTM_GETNEXTHOP, see_hop, hop_remove};
	static const struct kind LINKS = {RTM_GETLINK, see_link, link_remove};
	int rules = clean_kind(rtnl, &RULES, slot);
	int hops = clean_kind(rtnl, &HOPS, slot);
	int links = slot == FABRIC_SLOTS ? clean_kind(rtnl, &LINKS, slot) : 0;
	int held = slot == FABRIC_SLOTS ? clean_held(rtnl) : 0;

	if (rules < 0 || hops < 0)
		return rules < 0 ? rules : hops;
	return links < 0 ? links : held < 0 ? held : rules + hops + links + held;
}
