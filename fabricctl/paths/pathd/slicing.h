/* The shares of all jobs of a node, from their leases into the kernel, with the node's lock held. */
#ifndef FABRIC_SLICING_H
#define FABRIC_SLICING_H

#include "conf.h"
#include "rtnl.h"
#include "share.h"

/* Marks a rail as one that is sliced; 0 or -errno. */
int slicing_mark(struct rtnl *rtnl, const char *leases, const struct conf_rail *rail);

/* Makes the classes of the marked rails those that the leases say; without any, all of it goes and
 * the rails have their own queues back. `mine`, if not NULL, gets the grant of `slot`. Returns how
 * many rails got their queue back, or -errno. */
int slicing_apply(struct rtnl *rtnl, const char *leases, unsigned slot, struct grant *mine);

/* What `slot` has by the leases as they are now; as it was where they do not say. Without the lock. */
void slicing_grant(const char *leases, unsigned slot, struct grant *mine);

#endif
