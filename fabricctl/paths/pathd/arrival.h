/* What a probe that arrives teaches of its path: loss, delay, lag behind the other rails, and that they
 * bring what it does not. Pure computation; the verdicts are in pair.c. */
#ifndef FABRIC_ARRIVAL_H
#define FABRIC_ARRIVAL_H

#include "pair.h"

#define EVIDENCE 3 /* turns in which the peer sent here and elsewhere, and only that came */
#define SLOW_NS (20 * MS) /* queueing that no queue of a healthy rail holds beside an empty one */

/* As if nothing was ever heard on it. */
void path_reset(struct path *path, uint64_t now_ns);

#endif
