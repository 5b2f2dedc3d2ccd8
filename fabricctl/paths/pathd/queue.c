#include "queue.h"

#define DRIFT_PPM 60 /* crystals are within 25 ppm of their rate each; a margin */
#define STALE_NS 5000000000ull /* beyond this the path is as good as new to us */

void queue_take(struct queue *queue, int64_t delay_ns, uint64_t received_ns)
{
	/* Nothing, for one that is read after a newer one. */
	uint64_t since = received_ns > queue->floor_at_ns ? received_ns - queue->floor_at_ns : 0;

	if (!queue->floor_at_ns || since > STALE_NS) {
		queue->floor_ns = delay_ns;
		queue->seen = 0;
	} else {
		queue->floor_ns += (int64_t)(since * DRIFT_PPM / 1000000);
	}
	queue->floor_at_ns += since;
	if (delay_ns < queue->floor_ns)
		queue->floor_ns = delay_ns;
	queue->recent_ns[queue->seen++ % QUEUE_RECENT] = (uint64_t)(delay_ns - queue->floor_ns);
}

uint64_t queue_ns(const struct queue *queue)
{
	uint64_t least = UINT64_MAX;

	if (queue->seen < QUEUE_RECENT)
		return 0;
	for (unsigned i = 0; i < QUEUE_RECENT; i++)
		if (queue->recent_ns[i] < least)
			least = queue->recent_ns[i];
	return least;
}
