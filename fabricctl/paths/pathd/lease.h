/* What keeps the jobs of a node apart: slots, held by leases.
 *
 * A lease is the file <slot>.lease, locked (flock) while a fabric-pathd of the job lives. A lease
 * that nobody holds belongs to one that died: the next fabric-pathd of the same job adopts it with
 * the routes as they are; `fabric-pathd clean` removes it with all that is behind it. The file
 * `lock` is held while anything that jobs share is changed. */
#ifndef FABRIC_LEASE_H
#define FABRIC_LEASE_H

#include "conf.h"
#include "mover.h"
#include "share.h"

/* The descriptor that holds the node's lock until it is closed; -1 with errno. */
int lease_lock(const char *leases);

void lease_path(const char *leases, unsigned slot, char *path, size_t size);
unsigned long lease_job(int fd); /* 0 when it holds none */

/* The descriptor that holds the job's lease, -1 with errno. `adopted`: it was there before. */
int lease_take(const struct conf *conf, unsigned *slot, bool *adopted);

/* With the lock held: puts the share into the lease, or takes it out (NULL). */
int lease_set_share(const char *leases, unsigned slot, const struct share *share);

/* With the lock held: jobs that have a share; at most FABRIC_SLOTS. */
unsigned lease_shares(const char *leases, struct holding holding[FABRIC_SLOTS]);

#endif
