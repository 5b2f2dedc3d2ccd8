/* Shares of the rails in the kernel: one HTB queue a rail, shared by the jobs of a node.
 *
 *   fab0:     the queue; it replaces the kernel's default one and nothing else
 *   fab0:1    the rail
 *   fab0:2    everybody without a share
 *   fab0:6    root's packets of priority 6: probes
 *   fab0:100+slot   a job, found by a filter of preference 100+slot (filter.h)
 *
 * `sliced` in the lease directory names the rails, their rates and the queues that were there. */
#ifndef FABRIC_SLICE_H
#define FABRIC_SLICE_H

#include "rtnl.h"
#include "share.h"

#define SLICE_RAILS 16
#define SLICE_HANDLE 0xfab00000u
#define SLICE_CONTROL (SLICE_HANDLE | 6)
#define SLICE_JOB(slot) (SLICE_HANDLE | 0x100 | (slot))

struct sliced {
	char name[16]; /* IFNAMSIZ */
	uint64_t bytes_per_s;
	char before[16]; /* the queue's kind; "-": the kernel's own choice, which comes by itself */
};

/* What is the rail's queue now? 0 and its kind in `before` when ours may take its place or has,
 * -EBUSY when it is one that somebody configured. */
int slice_look(struct rtnl *rtnl, unsigned ifindex, char before[16]);

/* Each idempotent; 0 or -errno. */
int slice_rail(struct rtnl *rtnl, unsigned ifindex, uint64_t bytes_per_s, uint16_t rest);
int slice_grant(struct rtnl *rtnl, unsigned ifindex, uint64_t bytes_per_s, const struct grant *grant);
int slice_filters(struct rtnl *rtnl, unsigned ifindex, unsigned slot, int job, int control);
/* Removes classes of slots that are not in `slots` (a bit each). */
int slice_prune(struct rtnl *rtnl, unsigned ifindex, uint64_t slots);
int slice_remove(struct rtnl *rtnl, unsigned ifindex, const char *before);

#endif
