/* Round a queue and back, on a clock that we turn by hand. */
#include "check.h"
#include "pair.h"
#include "reroute.h"

struct sim {
	struct reroute reroute;
	struct reroute_view view;
	uint64_t now;
	unsigned changes;
};

static struct sim start(void)
{
	return (struct sim){
		.now = 100 * S,
		.view = {.rails = 2, .good = 3, .own = {200, 200}, .congested_ns = 2 * MS},
	};
}

static void run(struct sim *sim, uint64_t for_ns)
{
	for (uint64_t end = sim->now + for_ns; sim->now < end; sim->now += 20 * MS)
		sim->changes += reroute_turn(&sim->reroute, &sim->view, sim->now);
}

static void test_streams_go_round_a_queue_that_stays(void)
{
	struct sim sim = start();

	run(&sim, S);
	sim.view.queue_ns[0] = 8 * MS;
	run(&sim, 200 * MS);
	CHECK(sim.reroute.away == 0); /* a burst */
	run(&sim, 200 * MS);
	CHECK(sim.reroute.away == 1);
	run(&sim, 20 * S);
	CHECK(sim.reroute.away == 1 && sim.changes == 1);
	sim.view.queue_ns[0] = 0;
	run(&sim, S / 2);
	CHECK(sim.reroute.away == 1);
	run(&sim, S);
	CHECK(sim.reroute.away == 0 && sim.changes == 2);
}

static void test_nothing_moves_when_no_rail_has_room(void)
{
	struct sim sim = start();

	sim.view.queue_ns[0] = sim.view.queue_ns[1] = 8 * MS;
	run(&sim, 5 * S);
	sim.view.queue_ns[1] = MS; /* shorter, and yet no room */
	run(&sim, 5 * S);
	sim.view.queue_ns[1] = 0;
	sim.view.good = 1;
	run(&sim, 5 * S);
	CHECK(sim.changes == 0);
}

/* It carried nothing until now: that nothing waited there says nothing. */
static void test_a_rail_that_is_just_back_takes_no_others(void)
{
	struct sim sim = start();

	sim.view.good = 1;
	sim.view.queue_ns[0] = 8 * MS;
	run(&sim, S);
	sim.view.good = 3;
	run(&sim, 200 * MS);
	CHECK(sim.changes == 0);
	run(&sim, 200 * MS);
	CHECK(sim.reroute.away == 1);
}

static void test_a_queue_of_our_own_making_is_left_alone(void)
{
	struct sim sim = start();

	sim.view.queue_ns[0] = 8 * MS;
	sim.view.own[0] = 900;
	run(&sim, 20 * S);
	CHECK(sim.changes == 0);
}

static void test_a_move_that_took_the_queue_along_is_taken_back_and_seldom_tried_again(void)
{
	struct sim sim = start();
	unsigned moves = 0;

	for (unsigned i = 0; i < 120 * 50; i++) { /* two minutes: the queue is where we are */
		bool away = sim.reroute.away & 1;

		sim.view.queue_ns[0] = away ? 0 : 8 * MS;
		sim.view.queue_ns[1] = away ? 8 * MS : 0;
		run(&sim, 20 * MS);
		moves += !away && sim.reroute.away & 1;
	}
	CHECK(moves >= 2 && moves <= 6);
}

static void test_a_pair_keeps_off_a_rail_only_while_another_is_as_good(void)
{
	struct pair pair;

	pair_init(&pair, 2, 100 * S);
	pair.away = 1;
	CHECK(pair_members(&pair, 0) == 2 && pair_members(&pair, 1) == 2);
	pair_carrier(&pair, 1, false, 100 * S);
	CHECK(pair_members(&pair, 0) == 1 && pair_members(&pair, 1) == 1);
}

int main(void)
{
	test_streams_go_round_a_queue_that_stays();
	test_nothing_moves_when_no_rail_has_room();
	test_a_rail_that_is_just_back_takes_no_others();
	test_a_queue_of_our_own_making_is_left_alone();
	test_a_move_that_took_the_queue_along_is_taken_back_and_seldom_tried_again();
	test_a_pair_keeps_off_a_rail_only_while_another_is_as_good();
	return check_failures != 0;
}
