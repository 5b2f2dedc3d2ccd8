#include "arrival.h"

#include <math.h>

#define JITTER_MAX_NS (200 * MS)
#define SAME_MOMENT_US 250 /* between the probes of one turn on all rails */
#define EXCESS_TURN_NS S
#define FLOOR_TURN_NS (10 * S) /* two clocks drift 50 ppm apart at most: 0.5 ms in that time */
#define FIRST_PROMISE_NS (1 * S) /* to a peer of which nothing was heard yet */

/* Wald's test of loss: 0.1 % (a link in order) against 3 %. */
#define LOSS_PER_LOST 3.401
#define LOSS_PER_SEEN 0.0295

void path_reset(struct path *path, uint64_t now_ns)
{
	path->heard_ns = now_ns;
	path->due_ns = now_ns + FIRST_PROMISE_NS;
	path->sequence = path->window = 0;
	path->loss = (struct loss){0};
	path->delay_floor_ns = path->delay_floor_next_ns = INT64_MAX;
	path->floor_turn_ns = path->excess_turn_ns = now_ns;
	path->excess_ns[0] = path->excess_ns[1] = 0;
	path->lag_ns[0] = path->lag_ns[1] = path->newest_sent_ns = 0;
	path->turns = 0;
	path->slow_since_ns = 0;
	path->round_trip_ns = path->round_trip_floor_ns = 0;
	path->queue = (struct queue){0};
	path->peer_queue_ns = 0;
}

uint64_t path_jitter_ns(const struct path *path)
{
	uint64_t most = path->excess_ns[0] > path->excess_ns[1] ? path->excess_ns[0]
								: path->excess_ns[1];

	return most < JITTER_MAX_NS ? most : JITTER_MAX_NS;
}

uint64_t path_lag_ns(const struct path *path)
{
	uint64_t most = path->lag_ns[0] > path->lag_ns[1] ? path->lag_ns[0] : path->lag_ns[1];

	return most < JITTER_MAX_NS ? most : JITTER_MAX_NS;
}

static void count_lost(struct loss *loss, uint64_t sequence)
{
	double *score = sequence % LARGE_EVERY == 0 ? &loss->large : &loss->small;

	*score += LOSS_PER_LOST;
	loss->lost++;
}

static void count_seen(struct loss *loss, uint64_t sequence)
{
	double *score = sequence % LARGE_EVERY == 0 ? &loss->large : &loss->small;

	*score = fmax(0, *score - LOSS_PER_SEEN);
	loss->seen++;
}

/* False for a replay. A gap counts as loss; a late arrival takes its loss back. */
static bool take_sequence(struct path *path, uint64_t sequence)
{
	uint64_t ahead = sequence - path->sequence, behind = path->sequence - sequence;

	if (sequence > path->sequence) {
		if (path->sequence && path->listening != GONE)
			for (uint64_t i = 1; i < ahead && i <= 64; i++)
				count_lost(&path->loss, path->sequence + i);
		path->window = ahead < 64 ? path->window << ahead : 0;
		if (path->sequence && ahead <= 64)
			path->window |= 1ull << (ahead - 1);
		path->sequence = sequence;
	} else {
		if (behind == 0 || behind > 64 || path->window >> (behind - 1) & 1)
			return false;
		path->window |= 1ull << (behind - 1);
		if (path->loss.lost) {
			double *score = sequence % LARGE_EVERY == 0 ? &path->loss.large
								    : &path->loss.small;

			*score = fmax(0, *score - LOSS_PER_LOST);
			path->loss.lost--;
		}
	}
	count_seen(&path->loss, sequence);
	return true;
}

static void take_delay(struct path *path, const struct arrival *arrival)
{
	int64_t delay = (int64_t)(arrival->received_ns - arrival->sent_ns);
	uint64_t now = arrival->received_ns, excess;

	/* One that is read after a newer one is of the turn before. */
	if (now > path->floor_turn_ns + FLOOR_TURN_NS) {
		path->delay_floor_ns = path->delay_floor_next_ns;
		path->delay_floor_next_ns = INT64_MAX;
		path->floor_turn_ns = now;
	}
	if (delay < path->delay_floor_ns)
		path->delay_floor_ns = delay;
	if (delay < path->delay_floor_next_ns)
		path->delay_floor_next_ns = delay;
	if (now > path->excess_turn_ns + EXCESS_TURN_NS) {
		path->excess_ns[1] = now - path->excess_turn_ns < 2 * EXCESS_TURN_NS ? path->excess_ns[0] : 0;
		path->lag_ns[1] = now - path->excess_turn_ns < 2 * EXCESS_TURN_NS ? path->lag_ns[0] : 0;
		path->excess_ns[0] = path->lag_ns[0] = 0;
		path->excess_turn_ns = now;
	}
	excess = (uint64_t)(delay - path->delay_floor_ns);
	if (excess > path->excess_ns[0])
		path->excess_ns[0] = excess;
	path->turn[path->turns % PATH_TURNS].sent_us = (uint32_t)(arrival->sent_ns / 1000);
	path->turn[path->turns++ % PATH_TURNS].excess_us =
		(uint32_t)((excess < JITTER_MAX_NS ? excess : JITTER_MAX_NS) / 1000);
	if (arrival->sent_ns > path->newest_sent_ns)
		path->newest_sent_ns = arrival->sent_ns;
	if (excess < SLOW_NS)
		path->slow_since_ns = 0;
	else if (!path->slow_since_ns)
		path->slow_since_ns = now;
}

static void widen(uint64_t *lag_ns, uint32_t late_us, uint32_t soon_us)
{
	if (late_us > soon_us && (late_us - soon_us) * 1000ull > *lag_ns)
		*lag_ns = (late_us - soon_us) * 1000ull;
}

/* Against what the other rails brought of the same turn, whichever came first. */
static void take_lag(struct pair *pair, unsigned rail)
{
	struct path *path = &pair->path[rail];
	unsigned newest = (path->turns - 1) % PATH_TURNS;
	uint32_t sent = path->turn[newest].sent_us, excess = path->turn[newest].excess_us;

	for (unsigned i = 0; i < pair->rails; i++) {
		struct path *other = &pair->path[i];
		unsigned kept = other->turns < PATH_TURNS ? other->turns : PATH_TURNS;

		for (unsigned k = 1; i != rail && k <= kept; k++) {
			unsigned at = (other->turns - k) % PATH_TURNS;
			int32_t later = (int32_t)(other->turn[at].sent_us - sent);

			if (later > SAME_MOMENT_US)
				continue;
			if (later > -SAME_MOMENT_US) {
				widen(&path->lag_ns[0], excess, other->turn[at].excess_us);
				widen(&other->lag_ns[0], other->turn[at].excess_us, excess);
			}
			break;
		}
	}
}

/* The peer sends on all rails in one turn: what it sent elsewhere in a later turn than the newest
 * that came here is a turn missing here. */
static void take_evidence(struct path *path, const struct arrival *arrival)
{
	uint64_t turn = path->evidence ? path->evidence_sent_ns : path->newest_sent_ns;

	if (arrival->sent_ns < turn + SAME_MOMENT_US * 1000ull)
		return;
	path->evidence_sent_ns = arrival->sent_ns;
	if (++path->evidence == EVIDENCE)
		path->evidence_ns = arrival->received_ns;
}

bool pair_arrived(struct pair *pair, const struct arrival *arrival)
{
	struct path *path = &pair->path[arrival->rail];

	if (!take_sequence(path, arrival->sequence))
		return false;
	take_delay(path, arrival);
	take_lag(pair, arrival->rail);
	if (arrival->sequence % LARGE_EVERY == 0)
		queue_take(&path->queue, (int64_t)(arrival->received_ns - arrival->sent_ns),
			   arrival->received_ns);
	if (arrival->received_ns > path->heard_ns)
		path->heard_ns = arrival->received_ns;
	path->due_ns = path->heard_ns + arrival->next_ns;
	path->evidence = 0;
	for (unsigned rail = 0; rail < pair->rails; rail++)
		if (rail != arrival->rail)
			take_evidence(&pair->path[rail], arrival);
	return true;
}
