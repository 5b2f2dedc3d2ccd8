/* What fabric-pathd is told on its standard input: one `word value...` a line, ended by `end`.
 * fabricctl/paths/configure.py writes it; the words are explained there. */
#ifndef FABRIC_CONF_H
#define FABRIC_CONF_H

#include "address.h"
#include "share.h"
#include "siphash.h"

#include <net/if.h>
#include <stdio.h>

#define CONF_PORTS 4
#define CONF_NAME 64
#define CONF_PATH 256
#define CONF_CONGESTION 16 /* TCP_CA_NAME_MAX */

struct conf_rail {
	char name[IFNAMSIZ]; /* the rail's interface */
	char fabric[IFNAMSIZ]; /* the device that holds its fabric addresses */
	struct net net4; /* the rail's own address; family 0: none */
	struct ip ip6;
	uint64_t bytes_per_s; /* 0: not known */
};

struct conf_node {
	char name[CONF_NAME];
	struct ip manage; /* where it hears hellos; family 0: its name could not be resolved */
};

struct conf {
	unsigned long job;
	unsigned self, nodes, rails;
	uint8_t key[SIPHASH_KEY_BYTES];
	uint16_t port[CONF_PORTS]; /* tried in this order, by everybody */
	struct ip manage;
	struct net pool4, pool6; /* family 0: no fabric addresses of it */
	bool fabric, own; /* what is moved: fabric addresses, the rails' own addresses of `uid` */
	unsigned uid; /* of `own` */
	struct share share; /* ceiling 0: none */
	char group[CONF_PATH]; /* where Slurm makes the job's control group (version 2); "": nowhere */
	unsigned group_level;
	unsigned pace_us, reroute_us; /* queueing that slows the job, or moves it; 0: never */
	struct conf_rail rail[MAX_RAILS];
	struct conf_node *node;
	unsigned rto_min_ms, interval_us, budget_pps, ready_wait_s, hold_ms, hold_max_ms;
	char congestion[CONF_CONGESTION]; /* of TCP connections that begin on our routes; "": the host's */
	char dir[CONF_PATH]; /* the job's: events, state, control, env */
	char leases[CONF_PATH]; /* the node's: <slot>.lease, lock, sysctl.saved */
	char off[CONF_NAME]; /* why this node cannot take part; "": it can. The others are told */
	char watch[CONF_PATH]; /* the job is over when this is gone; "" for none */
};

/* False with a sentence in `problem`. */
bool conf_read(struct conf *conf, FILE *stream, char *problem, size_t size);

#endif
