/* What a fault is called while the nodes of a job find it out one after another. */
#include "cause.h"
#include "check.h"
#include "pair.h"

#define SETTLE (400 * MS)

struct sim {
	struct cause cause;
	uint64_t now;
	unsigned told; /* times */
};

static void look(struct sim *sim, struct census census, uint64_t for_ns)
{
	for (uint64_t end = sim->now + for_ns; sim->now < end; sim->now += 20 * MS)
		sim->told += cause_turn(&sim->cause, &census, sim->now, SETTLE);
}

static void each_pattern_has_its_name(void)
{
	CHECK(cause_of(&(struct census){3, 0, 0, 0, true}) == CAUSE_NONE);
	CHECK(cause_of(&(struct census){3, 3, 0, 0, false}) == CAUSE_OWN_PORT);
	CHECK(cause_of(&(struct census){3, 3, 0, 0, true}) == CAUSE_OWN_PORT);
	CHECK(cause_of(&(struct census){3, 3, 3, 0, true}) == CAUSE_SWITCH);
	CHECK(cause_of(&(struct census){3, 3, 3, 0, false}) == CAUSE_SWITCH);
	CHECK(cause_of(&(struct census){3, 1, 1, 0, true}) == CAUSE_PEERS_PORT);
	CHECK(cause_of(&(struct census){3, 1, 0, 0, true}) == CAUSE_PATH);
	CHECK(cause_of(&(struct census){1, 1, 1, 0, true}) == CAUSE_ONE_OF_TWO);
	CHECK(cause_of(&(struct census){1, 1, 1, 0, false}) == CAUSE_OWN_PORT);
}

static void what_is_seen_in_parts_is_told_once(void)
{
	struct sim sim = {.now = 100 * S};

	look(&sim, (struct census){3, 1, 0, 0, true}, 300 * MS);
	look(&sim, (struct census){3, 3, 1, 0, true}, 300 * MS);
	CHECK(sim.told == 0);
	look(&sim, (struct census){3, 3, 3, 0, true}, S);
	CHECK(sim.told == 1 && sim.cause.told == CAUSE_SWITCH);
}

static void later_evidence_corrects_what_was_told(void)
{
	struct sim sim = {.now = 100 * S};

	look(&sim, (struct census){3, 3, 2, 0, true}, 2 * S);
	CHECK(sim.told == 1 && sim.cause.told == CAUSE_OWN_PORT);
	look(&sim, (struct census){3, 3, 3, 0, true}, 2 * S);
	CHECK(sim.told == 2 && sim.cause.told == CAUSE_SWITCH);
}

static void a_fault_that_heals_peer_by_peer_is_no_other_fault(void)
{
	struct sim sim = {.now = 100 * S};

	look(&sim, (struct census){3, 3, 3, 0, true}, S);
	look(&sim, (struct census){3, 1, 1, 2, true}, S);
	look(&sim, (struct census){3, 0, 0, 3, true}, S);
	CHECK(sim.told == 1 && sim.cause.told == CAUSE_SWITCH);
	look(&sim, (struct census){3, 0, 0, 0, true}, S);
	CHECK(sim.told == 1 && sim.cause.told == CAUSE_NONE);
	look(&sim, (struct census){3, 3, 3, 0, true}, S);
	CHECK(sim.told == 2);
}

int main(void)
{
	each_pattern_has_its_name();
	what_is_seen_in_parts_is_told_once();
	later_evidence_corrects_what_was_told();
	a_fault_that_heals_peer_by_peer_is_no_other_fault();
	return check_failures != 0;
}
