/* How long packets wait on a path: one-way delay above its floor. Pure computation.
 *
 * Sender and receiver have clocks of their own: only differences count, and the floor rises as fast
 * as two clocks can drift apart. The least of the last few tells a standing queue from a burst, and
 * from a host that was late. */
#ifndef FABRIC_QUEUE_H
#define FABRIC_QUEUE_H

#include <stdint.h>

#define QUEUE_RECENT 3

struct queue {
	int64_t floor_ns;
	uint64_t floor_at_ns; /* 0: nothing seen yet */
	uint64_t recent_ns[QUEUE_RECENT];
	unsigned seen;
};

void queue_take(struct queue *queue, int64_t delay_ns, uint64_t received_ns);
uint64_t queue_ns(const struct queue *queue); /* 0 until enough was seen */

#endif
