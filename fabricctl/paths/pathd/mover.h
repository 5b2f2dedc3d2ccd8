/* What fabric-pathd puts into the kernel, and how all of it is found again.
 *
 * Everything of ours carries routing protocol FABRIC_PROTOCOL, or lies in one of our tables, or is
 * a device of group FABRIC_GROUP. A job has a slot; slot numbers keep jobs of one node apart:
 *
 *   rule      FABRIC_RULE_BASE + slot    to <pool>, or from processes of the job's user, lookup
 *                                        <table of the slot>
 *   table     FABRIC_TABLE + slot        per peer and rail: group (metric 10), other rails (20+),
 *                                        the fabric device (1000)
 *   main      per rail: its part of the pool leads to the fabric device, which drops. A peer that
 *             cannot be reached is waited for, not refused
 *   nexthops  FABRIC_NEXTHOP + slot<<18 + ...
 *   device    fab<rail>                  one a rail and node, shared by all jobs
 *
 * The mover is an interface of few calls (mover_peer_set is the move) so that another transport
 * than TCP can have its own. */
#ifndef FABRIC_MOVER_H
#define FABRIC_MOVER_H

#include "address.h"
#include "rtnl.h"

#define FABRIC_PROTOCOL 70 /* rtm_protocol; free in iproute2's rt_protos */
#define FABRIC_TABLE 0x46000000u
#define FABRIC_NEXTHOP 0x46000000u
#define FABRIC_RULE_BASE 30000 /* before main (32766), after local (0) */
#define FABRIC_SLOTS 64
#define FABRIC_GROUP 0x46000000u
#define FABRIC_ALIAS "fabricctl: fabric address of running jobs"
#define MAX_PEERS 8000 /* nexthop ids of one slot: 18 bits, 32 a peer */

enum { FAMILY4, FAMILY6, FAMILIES };

struct mover {
	struct rtnl rtnl;
	unsigned slot;
	unsigned rails;
	unsigned rto_min_ms;
	char congestion[16]; /* "": the host's */
	unsigned ifindex[MAX_RAILS]; /* of the rails */
	unsigned fabric_ifindex[MAX_RAILS]; /* of the fabric devices */
	/* Our addresses, the routes' preferred source. Family 0: that kind is not moved. */
	struct ip self[FAMILIES][MAX_RAILS]; /* fabric addresses */
	struct ip own[FAMILIES][MAX_RAILS]; /* the rails' own */
};

struct mover_peer {
	unsigned number; /* below MAX_PEERS */
	struct ip via[FAMILIES][MAX_RAILS]; /* the peer's address on each rail; family 0: none */
	struct ip fabric[FAMILIES][MAX_RAILS];
	uint8_t members[MAX_RAILS]; /* per fabric address: bit per rail that carries it now */
	uint8_t usable; /* rails whose nexthops are in the kernel */
	bool acks_at_once; /* its routes ask for them: decision 27 */
};

/* The shared part. Calls are idempotent; 0 or -errno, `what` then names the object. */
int mover_device_add(struct rtnl *rtnl, const char *name, unsigned mtu, const char **what);
int mover_device_up(struct rtnl *rtnl, unsigned ifindex);
int mover_address_add(struct rtnl *rtnl, unsigned ifindex, const struct ip *ip);
int mover_rule_add(struct rtnl *rtnl, const struct net *pool, unsigned slot);
int mover_user_rule_add(struct rtnl *rtnl, int family, uint32_t uid, unsigned slot);
/* One of a rail's own addresses, kept on the loopback device when it was taken from the rail. */
int mover_hold_address(struct rtnl *rtnl, const struct ip *ip);
int mover_sink_add(struct rtnl *rtnl, const struct net *part, const struct ip *source,
		   unsigned ifindex, unsigned rto_min_ms);

/* The nexthops that lead to the fabric devices, once per slot. */
int mover_last_resorts(struct mover *mover);

/* Installs all that belongs to a peer: nexthops of the rails in `carrier`, groups, routes.
 * Also what puts back what the kernel removed when a port lost its carrier. */
int mover_peer_install(struct mover *mover, struct mover_peer *peer, uint8_t carrier);

/* Moves one fabric address of a peer to the rails in `members`: one message a family. */
int mover_peer_set(struct mover *mover, struct mover_peer *peer, unsigned rail, uint8_t members);

/* TCP acknowledges what comes from the peer at once, or when it likes. */
int mover_peer_acks(struct mover *mover, struct mover_peer *peer, bool at_once);

/* Which rails carried each fabric address of each peer when the last fabric-pathd of this slot
 * ended: `each` gets peer number, rail and members of every group that is in the kernel. */
typedef void mover_each(unsigned number, unsigned rail, uint8_t members, void *arg);
int mover_load(struct mover *mover, mover_each *each, void *arg);

/* Removes one slot's rules, routes and nexthops; slot FABRIC_SLOTS: every slot, the shared table
 * and the devices. Returns how many objects were removed, or -errno. */
int mover_clean(struct rtnl *rtnl, unsigned slot);

#endif
