/* How a rail that was left is used again, by a simulated peer. */
#include "sim.h"

/* Rail 0 was dead for five seconds. */
static struct sim just_healed(void)
{
	struct sim sim = start();

	run(&sim, 3 * S);
	sim.loss_percent[0] = 100;
	run(&sim, 5 * S);
	sim.loss_percent[0] = 0;
	return sim;
}

static void it_comes_back_after_a_second_of_health(void)
{
	struct sim sim = just_healed();
	uint64_t healed = sim.now;

	run(&sim, 990 * MS);
	CHECK(sim.count[CHANGE_GOOD] == 0 && pair_members(&sim.pair, 0) == 2);
	run(&sim, 100 * MS);
	CHECK(sim.count[CHANGE_GOOD] == 1 && pair_members(&sim.pair, 0) == 1);
	CHECK(sim.last_ns - healed < 1050 * MS);
}

/* All that comes back waits as it did elsewhere, probes too: not silence. */
static void what_comes_back_brings_its_queue_along(void)
{
	struct sim sim = just_healed();
	uint64_t back;

	for (unsigned i = 0; i < 400 && !(pair_members(&sim.pair, 0) & 1); i++) {
		sim.delay[1] = DELAY + (i % 2) * 7 * MS;
		run(&sim, 5 * MS);
	}
	back = sim.now;
	sim.count[CHANGE_GONE] = 0;
	sim.loss_percent[0] = 100;
	run(&sim, 8 * MS);
	sim.loss_percent[0] = 0;
	run(&sim, 20 * MS);
	CHECK(sim.count[CHANGE_GONE] == 0 && pair_members(&sim.pair, 0) == 1);
	/* For two seconds: by then what waits here has been seen. */
	sim.delay[1] = DELAY;
	run(&sim, back + 4 * S - sim.now);
	sim.loss_percent[0] = 100;
	run(&sim, 6 * MS);
	CHECK(sim.count[CHANGE_GONE] == 1);
}

/* Nor is what it brought late of the queue in which it was left a habit of it. */
static void a_slow_rail_that_came_back_is_left_soon(void)
{
	struct sim sim = start();

	sim.pair.hold_ns = sim.pair.hold_max_ns = 300 * MS;
	run(&sim, 3 * S);
	sim.loss_percent[0] = 100;
	run(&sim, 20 * MS);
	sim.loss_percent[0] = 0;
	for (uint64_t queue = 36 * MS; queue; queue -= 4 * MS) {
		sim.delay[0] = DELAY + queue;
		run(&sim, 4 * MS);
	}
	sim.delay[0] = DELAY;
	run(&sim, 500 * MS);
	CHECK(sim.count[CHANGE_GONE] == 1 && pair_members(&sim.pair, 0) == 1);
	sim.loss_percent[0] = 100;
	run(&sim, 16 * MS); /* 10 of them its own jitter's */
	CHECK(sim.count[CHANGE_GONE] == 2 && pair_members(&sim.pair, 0) == 2);
}

static void a_flapping_rail_is_held_out_longer_each_time(void)
{
	struct sim sim = start();
	uint64_t held[4];

	run(&sim, 3 * S);
	for (int i = 0; i < 4; i++) {
		uint64_t healed;

		sim.loss_percent[0] = 100;
		run(&sim, 200 * MS);
		sim.loss_percent[0] = 0;
		healed = sim.now;
		run(&sim, 15 * S);
		CHECK(sim.count[CHANGE_GOOD] == (unsigned)i + 1);
		held[i] = sim.last_ns - healed;
	}
	CHECK(held[0] < 1100 * MS && held[1] > 3 * held[0] / 2 && held[2] > 3 * held[1] / 2);
	CHECK(held[3] > 3 * held[2] / 2);
}

/* Nobody gains by a long hold while the only other rail loses what it is given. */
static void a_rail_on_probation_is_taken_where_the_other_loses(void)
{
	struct sim sim = start();

	for (unsigned i = 0; i < 6; i++) {
		run(&sim, 500 * MS);
		pair_carrier(&sim.pair, 1, false, sim.now);
		run(&sim, 100 * MS);
		pair_carrier(&sim.pair, 1, true, sim.now);
		sim.pair.path[1].listening = i < 5 ? HEARD : GONE; /* six failures in a few seconds */
	}
	run(&sim, 2 * S);
	CHECK(sim.pair.path[1].listening == PROVING && pair_members(&sim.pair, 1) == 1);
	sim.large_loss_percent[0] = 100;
	run(&sim, 400 * MS);
	CHECK(pair_members(&sim.pair, 0) == 2 && pair_members(&sim.pair, 1) == 2);
	CHECK(pair_level(&sim.pair, 1) == LEVEL_GOOD && pair_level(&sim.pair, 0) == LEVEL_POOR);
	/* And stays so, however well the first one does in the time that it must prove itself. */
	sim.large_loss_percent[0] = 0;
	run(&sim, 500 * MS);
	CHECK(pair_members(&sim.pair, 0) == 2);
}

static void flapping_at_20_hz_moves_once(void)
{
	struct sim sim = start();

	run(&sim, 3 * S);
	for (int i = 0; i < 200; i++) {
		sim.loss_percent[0] = i % 2 ? 0 : 100;
		run(&sim, 25 * MS);
	}
	CHECK(sim.count[CHANGE_GONE] == 1 && sim.count[CHANGE_GOOD] == 0);
}

static void a_rail_heals_although_its_peer_is_often_late(void)
{
	struct sim sim = start();

	run(&sim, 1 * S);
	sim.loss_percent[0] = 100;
	run(&sim, 100 * MS);
	sim.loss_percent[0] = 0;
	for (int i = 0; i < 150; i++) {
		sim.frozen = i % 2;
		run(&sim, (uint64_t)(rand() % 12 + 4) * MS);
	}
	CHECK(sim.count[CHANGE_GONE] == 1 && sim.count[CHANGE_GOOD] == 1);
	CHECK(pair_members(&sim.pair, 0) == 1);
}

static void a_lossy_rail_does_not_come_back(void)
{
	struct sim sim = start();

	sim.loss_percent[0] = 5;
	run(&sim, 60 * S);
	CHECK(sim.count[CHANGE_GOOD] == 0 && pair_members(&sim.pair, 0) == 2);
}

static void the_earlier_instant_that_either_end_sets_holds(void)
{
	struct sim sim = start();

	run(&sim, 1 * S);
	sim.pair.path[0].peer_level = LEVEL_POOR;
	run(&sim, 10 * MS);
	sim.pair.path[0].peer_level = LEVEL_GOOD;
	run(&sim, 2 * MS);
	sim.pair.path[0].peer_back_ns = sim.now + 5 * MS;
	run(&sim, 4 * MS);
	CHECK(pair_members(&sim.pair, 0) == 2 && pair_back_ns(&sim.pair) == sim.now + MS);
	run(&sim, 2 * MS);
	CHECK(pair_members(&sim.pair, 0) == 1);
}

/* Its probes are 0.1 s apart: four of them would be nearly half of the outage's rest. */
static void a_pair_that_carries_nothing_waits_no_longer_than_its_news_takes(void)
{
	struct sim sim = start();
	struct path *path = &sim.pair.path[0];
	struct change_of changes[MAX_RAILS + 1];

	run(&sim, 1 * S);
	path->peer_level = LEVEL_POOR;
	run(&sim, 10 * MS);
	path->peer_level = LEVEL_GOOD;
	path->due_ns = path->heard_ns + 100 * MS;
	pair_evaluate(&sim.pair, sim.now, false, changes);
	CHECK(pair_back_ns(&sim.pair) == sim.now + 100 * MS);
}

static void what_fails_again_before_the_instant_stays_left(void)
{
	struct sim sim = start();

	run(&sim, 1 * S);
	sim.pair.path[0].peer_level = LEVEL_POOR;
	run(&sim, 10 * MS);
	sim.pair.path[0].peer_level = LEVEL_GOOD;
	run(&sim, 10 * MS);
	sim.pair.path[0].peer_level = LEVEL_DEAD;
	run(&sim, 100 * MS);
	CHECK(pair_members(&sim.pair, 0) == 2 && !pair_back_ns(&sim.pair));
}

static void carrier_decides_at_once_and_heals_by_proof(void)
{
	struct sim sim = start();

	run(&sim, 1 * S);
	sim.loss_percent[0] = 100;
	pair_carrier(&sim.pair, 0, false, sim.now);
	CHECK(pair_members(&sim.pair, 0) == 2 && pair_reason(&sim.pair, 0) == REASON_CARRIER);
	run(&sim, 100 * MS);
	sim.loss_percent[0] = 0;
	pair_carrier(&sim.pair, 0, true, sim.now);
	CHECK(pair_members(&sim.pair, 0) == 2);
	run(&sim, 1100 * MS);
	CHECK(pair_members(&sim.pair, 0) == 1 && sim.count[CHANGE_GOOD] == 1);
}

int main(void)
{
	it_comes_back_after_a_second_of_health();
	what_comes_back_brings_its_queue_along();
	a_slow_rail_that_came_back_is_left_soon();
	a_flapping_rail_is_held_out_longer_each_time();
	a_rail_on_probation_is_taken_where_the_other_loses();
	flapping_at_20_hz_moves_once();
	a_rail_heals_although_its_peer_is_often_late();
	a_lossy_rail_does_not_come_back();
	the_earlier_instant_that_either_end_sets_holds();
	a_pair_that_carries_nothing_waits_no_longer_than_its_news_takes();
	what_fails_again_before_the_instant_stays_left();
	carrier_decides_at_once_and_heals_by_proof();
	return check_failures != 0;
}
