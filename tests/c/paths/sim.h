/* A simulated peer: probes every 2 ms on two rails, a clock that we turn by hand. */
#ifndef FABRIC_TEST_SIM_H
#define FABRIC_TEST_SIM_H

#include "check.h"
#include "pair.h"

#include <stdlib.h>
#include <string.h>

#define STEP (MS / 4)
#define INTERVAL (2 * MS)
#define DELAY (MS / 20)
#define PEERS_CLOCK (1000 * S) /* ahead of ours */

struct sim {
	struct pair pair;
	uint64_t now, next, sequence[MAX_RAILS];
	unsigned loss_percent[MAX_RAILS]; /* of what the peer sends there */
	unsigned large_loss_percent[MAX_RAILS];
	uint64_t delay[MAX_RAILS];
	bool frozen; /* the peer */
	unsigned count[CHANGE_BACK + 1];
	struct change_of last;
	uint64_t last_ns;
};

static inline struct sim start(void)
{
	struct sim sim = {.now = 100 * S, .next = 100 * S, .delay = {DELAY, DELAY, DELAY}};

	srand(1);
	pair_init(&sim.pair, 2, sim.now);
	pair_new_session(&sim.pair, 42, sim.now);
	return sim;
}

static inline void deliver(struct sim *sim, unsigned rail)
{
	uint64_t sequence = ++sim->sequence[rail];
	unsigned loss = sequence % LARGE_EVERY ? sim->loss_percent[rail]
					       : sim->loss_percent[rail] + sim->large_loss_percent[rail];
	struct arrival arrival = {rail, sequence, sim->now + PEERS_CLOCK, sim->now + sim->delay[rail],
				  INTERVAL};

	if ((unsigned)(rand() % 100) >= loss)
		pair_arrived(&sim->pair, &arrival);
}

static inline void turn(struct sim *sim, bool late)
{
	struct change_of changes[MAX_RAILS + 1];
	unsigned count;
	uint64_t gap = pair_in_doubt(&sim->pair, sim->now) ? MS / 2 : INTERVAL;

	if (!sim->frozen && (sim->now >= sim->next || sim->next > sim->now + gap)) {
		for (unsigned rail = 0; rail < sim->pair.rails; rail++)
			deliver(sim, rail);
		sim->next = sim->now + gap;
	}
	count = pair_evaluate(&sim->pair, sim->now, late, changes);
	for (unsigned i = 0; i < count; i++) {
		sim->count[changes[i].change]++;
		sim->last = changes[i];
		sim->last_ns = sim->now;
	}
}

static inline void run(struct sim *sim, uint64_t duration)
{
	for (uint64_t end = sim->now + duration; sim->now < end; sim->now += STEP)
		turn(sim, false);
}

#endif
