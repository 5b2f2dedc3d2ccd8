/* Carrier of the rails, as the kernel tells it the moment it changes. */
#include "daemon.h"

#include <errno.h>
#include <linux/fib_rules.h>
#include <linux/if_addr.h>
#include <linux/rtnetlink.h>
#include <net/if.h>
#include <string.h>

#ifndef IFF_LOWER_UP
#define IFF_LOWER_UP 0x10000 /* linux/if.h, which cannot stand beside net/if.h */
#endif

static void see_link(const struct nlmsghdr *head, void *arg)
{
	const struct ifinfomsg *link = NLMSG_DATA(head);
	const struct rtattr *table[IFLA_MAX + 1];
	struct daemon *d = arg;
	unsigned wanted = IFF_UP | IFF_RUNNING | IFF_LOWER_UP;
	bool there = head->nlmsg_type == RTM_NEWLINK;
	bool carrier = there && (link->ifi_flags & wanted) == wanted;

	if (!there && head->nlmsg_type != RTM_DELLINK)
		return;
	rtnl_parse(head, sizeof(*link), table, IFLA_MAX + 1);
	for (unsigned i = 0; i < d->conf.rails; i++) {
		struct rail *rail = &d->rail[i];

		if (rail->ifindex == (unsigned)link->ifi_index) {
			if (rail->carrier != carrier)
				moving_carrier(d, i, carrier);
		} else if (there && table[IFLA_IFNAME] &&
			   !strcmp(RTA_DATA(table[IFLA_IFNAME]), rail->conf->name)) {
			/* Its driver was loaded anew: sockets, nexthops and queues are all of the device that was. */
			d->port_anew = true;
			loop_stop();
		}
	}
}

/* A look at the links as they are has no say in addresses: they are told by events alone. */
static void see_address(const struct nlmsghdr *head, struct daemon *d)
{
	const struct ifaddrmsg *address = NLMSG_DATA(head);
	const struct rtattr *table[IFA_MAX + 1], *local;
	struct ip ip = {.family = address->ifa_family};

	if (head->nlmsg_type != RTM_DELADDR || address->ifa_index == if_nametoindex("lo"))
		return;
	rtnl_parse(head, sizeof(*address), table, IFA_MAX + 1);
	local = table[IFA_LOCAL] ? table[IFA_LOCAL] : table[IFA_ADDRESS];
	if (!local || RTA_PAYLOAD(local) != ip_bytes(&ip))
		return;
	memcpy(ip.byte, RTA_DATA(local), ip_bytes(&ip));
	moving_address_gone(d, &ip);
}

/* Network services remove what they do not know when they are restarted. */
static void see_rule(const struct nlmsghdr *head, struct daemon *d)
{
	const struct rtattr *table[FRA_MAX + 1];

	rtnl_parse(head, sizeof(struct fib_rule_hdr), table, FRA_MAX + 1);
	d->rules_gone |= head->nlmsg_type == RTM_DELRULE &&
			 rtnl_u32(table[FRA_TABLE]) == FABRIC_TABLE + d->mover.slot;
}

/* All links, now: at the start, and when the kernel had to drop events. */
static int look(struct daemon *d)
{
	struct ifinfomsg head = {.ifi_family = AF_UNSPEC};
	struct rtnl rtnl;
	struct rtnl_msg msg;
	int error = rtnl_open(&rtnl, NETLINK_ROUTE, 0);

	if (error)
		return error;
	rtnl_begin(&msg, RTM_GETLINK, 0, &head, sizeof(head));
	error = rtnl_dump(&rtnl, &msg, see_link, d);
	rtnl_close(&rtnl);
	return error == -EINTR ? 0 : error;
}

bool links_open(struct daemon *d, char *problem, size_t size)
{
	uint32_t groups = RTMGRP_LINK | RTMGRP_IPV4_IFADDR | RTMGRP_IPV6_IFADDR | RTMGRP_IPV4_RULE |
			  1u << (RTNLGRP_IPV6_RULE - 1);
	int error = rtnl_open(&d->monitor, NETLINK_ROUTE, groups);

	if (!error)
		error = look(d);
	if (error)
		snprintf(problem, size, "link events: %s", strerror(-error));
	return !error;
}

void links_read(struct daemon *d)
{
	static _Alignas(struct nlmsghdr) char buffer[32768];
	ssize_t got;

	while ((got = recv(d->monitor.fd, buffer, sizeof(buffer), MSG_DONTWAIT)) != 0) {
		const struct nlmsghdr *head = (const struct nlmsghdr *)buffer;

		if (got < 0 && errno == ENOBUFS) {
			look(d);
			continue;
		}
		if (got < 0)
			return;
		for (int left = (int)got; NLMSG_OK(head, (unsigned)left); head = NLMSG_NEXT(head, left))
			if (head->nlmsg_type == RTM_NEWADDR || head->nlmsg_type == RTM_DELADDR)
				see_address(head, d);
			else if (head->nlmsg_type == RTM_NEWRULE || head->nlmsg_type == RTM_DELRULE)
				see_rule(head, d);
			else
				see_link(head, d);
	}
}
