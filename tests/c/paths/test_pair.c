/* Verdicts on a simulated peer: what is left, and what is not. Coming back: test_failback.c. */
#include "sim.h"

static void a_healthy_pair_is_left_alone(void)
{
	struct sim sim = start();

	run(&sim, 30 * S);
	for (unsigned i = 1; i <= CHANGE_BACK; i++)
		CHECK(sim.count[i] == 0);
	CHECK(pair_members(&sim.pair, 0) == 1 && pair_members(&sim.pair, 1) == 2);
}

static void a_silent_rail_is_left_within_5_ms(void)
{
	struct sim sim = start();
	uint64_t fault;

	run(&sim, 3 * S);
	fault = sim.now;
	sim.loss_percent[0] = 100;
	run(&sim, 100 * MS);
	CHECK(sim.count[CHANGE_GONE] == 1 && sim.last.rail == 0 && sim.last.reason == REASON_SILENT);
	CHECK(sim.last_ns - fault <= 5 * MS);
	CHECK(sim.last.begin_ns <= fault && fault - sim.last.begin_ns <= INTERVAL);
	CHECK(pair_members(&sim.pair, 0) == 2 && pair_members(&sim.pair, 1) == 2);
	CHECK(pair_level(&sim.pair, 0) == LEVEL_DEAD);
}

/* Answers come at once: three on one rail alone may still have passed those that a queue of the host
 * holds. */
static void three_quick_answers_elsewhere_are_no_proof_yet(void)
{
	struct sim sim = start();
	uint64_t begin;

	run(&sim, 3 * S);
	sim.loss_percent[0] = 100;
	while (sim.pair.path[0].listening != SUSPECT)
		run(&sim, STEP);
	begin = sim.pair.path[0].suspect_ns;
	run(&sim, 100 * MS);
	CHECK(sim.count[CHANGE_GONE] == 1 && sim.last_ns - begin >= 3 * MS / 2);
}

static void a_frozen_peer_is_stalled_not_dead(void)
{
	struct sim sim = start();

	run(&sim, 3 * S);
	sim.frozen = true;
	run(&sim, 10 * S);
	CHECK(sim.count[CHANGE_STALLED] == 1 && sim.count[CHANGE_GONE] == 0);
	CHECK(pair_members(&sim.pair, 0) == 1 && pair_members(&sim.pair, 1) == 2);
	sim.frozen = false;
	run(&sim, 2 * S);
	CHECK(sim.count[CHANGE_BACK] == 1 && sim.count[CHANGE_GONE] == 0 && sim.count[CHANGE_POOR] == 0);
}

static void a_peer_run_for_moments_only_is_not_dead(void)
{
	struct sim sim = start();

	run(&sim, 3 * S);
	for (int i = 0; i < 200; i++) {
		sim.frozen = i % 2;
		run(&sim, (uint64_t)(rand() % 40 + 1) * MS);
	}
	CHECK(sim.count[CHANGE_GONE] == 0);
}

/* We were not run: what arrived meanwhile is taken in first on one rail, then on the other. */
static void our_own_absence_blames_nobody(void)
{
	struct sim sim = start();

	run(&sim, 3 * S);
	for (int i = 0; i < 50; i++) {
		sim.now += 30 * MS;
		deliver(&sim, 1);
		deliver(&sim, 1);
		deliver(&sim, 1);
		struct change_of changes[MAX_RAILS + 1];

		CHECK(pair_evaluate(&sim.pair, sim.now, true, changes) == 0);
		deliver(&sim, 0);
		sim.next = sim.now;
		run(&sim, 10 * MS);
	}
	CHECK(sim.count[CHANGE_GONE] == 0);
}

static void queueing_widens_what_is_waited_for(void)
{
	struct sim sim = start();

	run(&sim, 3 * S);
	for (int i = 0; i < 100; i++) { /* a queue that fills by 0.3 ms a probe, up to 15 ms */
		sim.delay[0] = DELAY + (uint64_t)(i % 50) * 300 * 1000;
		run(&sim, 2 * MS);
	}
	CHECK(sim.count[CHANGE_GONE] == 0 && path_jitter_ns(&sim.pair.path[0]) > 10 * MS);
}

/* Both rails bring their probes late at times: that is a host, and no reason to wait for a rail. */
static void a_busy_host_does_not_put_off_the_verdict(void)
{
	struct sim sim = start();
	uint64_t fault;

	for (int i = 0; i < 1500; i++) {
		sim.delay[0] = sim.delay[1] = DELAY + (i % 20 == 0) * 8 * MS;
		run(&sim, 2 * MS);
	}
	CHECK(sim.count[CHANGE_GONE] == 0 && path_jitter_ns(&sim.pair.path[0]) > 7 * MS);
	CHECK(path_lag_ns(&sim.pair.path[0]) < MS / 10);
	fault = sim.now;
	sim.loss_percent[0] = 100;
	run(&sim, 100 * MS);
	CHECK(sim.count[CHANGE_GONE] == 1 && sim.last_ns - fault <= 5 * MS);
}

static void one_rail_that_is_late_at_times_is_given_the_time(void)
{
	struct sim sim = start();

	for (int i = 0; i < 1500; i++) {
		sim.delay[0] = DELAY + (uint64_t)(i % 20) * 300 * 1000;
		run(&sim, 2 * MS);
	}
	CHECK(sim.count[CHANGE_GONE] == 0 && path_lag_ns(&sim.pair.path[0]) > 5 * MS);
	CHECK(path_lag_ns(&sim.pair.path[1]) < MS / 10);
}

/* Probes that wait in a queue of one rail come turns after those of the other: what they were late
 * by must be learned all the same. */
static void a_queue_longer_than_a_turn_is_learned(void)
{
	struct sim sim = start();
	uint64_t late[8] = {0};
	unsigned from = 0, to = 0;

	sim.frozen = true; /* delivered by hand, in the order of arrival */
	for (unsigned turns = 0; turns < 2000; turns++) {
		struct arrival arrival = {1, ++sim.sequence[1], sim.now + PEERS_CLOCK, sim.now + DELAY, INTERVAL};
		uint64_t queue = turns < 500 ? 0 : (turns % 100) * 100000ull; /* up to 10 ms */

		pair_arrived(&sim.pair, &arrival);
		late[to++ % 8] = sim.now + queue;
		while (from < to && late[from % 8] <= sim.now) {
			arrival = (struct arrival){0, ++sim.sequence[0], 0, sim.now + DELAY, INTERVAL};
			arrival.sent_ns = PEERS_CLOCK + 100 * S + from++ * INTERVAL;
			pair_arrived(&sim.pair, &arrival);
		}
		run(&sim, INTERVAL);
	}
	CHECK(sim.count[CHANGE_GONE] <= 1 && path_lag_ns(&sim.pair.path[0]) > 8 * MS);
}

static void loss_of_5_percent_is_left_within_250_ms(void)
{
	unsigned slow = 0;

	for (unsigned seed = 1; seed <= 40; seed++) {
		struct sim sim = start();
		uint64_t fault;

		srand(seed);
		run(&sim, 1 * S);
		fault = sim.now;
		sim.loss_percent[0] = 5;
		run(&sim, 2 * S);
		CHECK(sim.count[CHANGE_POOR] >= 1 || sim.count[CHANGE_GONE] >= 1);
		CHECK(pair_members(&sim.pair, 0) == 2);
		slow += sim.count[CHANGE_POOR] != 1 || sim.last.reason != REASON_LOSS ||
			sim.last_ns - fault > 250 * MS;
	}
	CHECK(slow <= 10);
}

static void loss_of_one_in_a_thousand_is_lived_with(void)
{
	struct sim sim = start();

	for (int i = 0; i < 60; i++) {
		uint64_t lost = ++sim.sequence[0]; /* one probe that never arrives */

		(void)lost;
		run(&sim, 2 * S);
	}
	CHECK(sim.count[CHANGE_POOR] == 0 && sim.count[CHANGE_GONE] == 0);
}

static void loss_of_large_packets_alone_is_named(void)
{
	struct sim sim = start();
	uint64_t fault;

	run(&sim, 1 * S);
	fault = sim.now;
	sim.large_loss_percent[0] = 100;
	run(&sim, 1 * S);
	CHECK(sim.count[CHANGE_POOR] == 1 && sim.last.reason == REASON_SIZE);
	CHECK(sim.last_ns - fault < 250 * MS);
}

static void loss_on_both_rails_moves_nothing(void)
{
	struct sim sim = start();

	sim.loss_percent[0] = sim.loss_percent[1] = 5;
	run(&sim, 10 * S);
	CHECK(pair_members(&sim.pair, 0) == 1 || pair_members(&sim.pair, 1) == 2);
}

static void a_queue_far_above_the_other_rails_is_left(void)
{
	struct sim sim = start();
	uint64_t fault;

	run(&sim, 3 * S);
	fault = sim.now;
	sim.delay[0] = 60 * MS;
	run(&sim, 200 * MS);
	CHECK(sim.count[CHANGE_POOR] == 1 && sim.last.reason == REASON_SLOW);
	CHECK(sim.last_ns - fault < 250 * MS);
}

/* It came after this turn began: later than our `now`, and is no proof of a queue that stands. */
static void one_probe_that_was_late_moves_nothing(void)
{
	struct sim sim = start();
	struct arrival late = {.rail = 0, .next_ns = INTERVAL};
	struct change_of changes[MAX_RAILS + 1];

	run(&sim, 3 * S);
	late.sequence = ++sim.sequence[0];
	late.sent_ns = sim.now + PEERS_CLOCK - 25 * MS;
	late.received_ns = sim.now + MS / 100;
	pair_arrived(&sim.pair, &late);
	CHECK(pair_evaluate(&sim.pair, sim.now, false, changes) == 0);
	CHECK(pair_level(&sim.pair, 0) == LEVEL_GOOD);
}

/* Urgent ones have a socket of their own, which is read after the other: the second that begins with what
 * that brought is no new one for them. */
static void what_is_read_later_than_a_newer_one_forgets_nothing(void)
{
	struct sim sim = start();
	struct arrival arrival = {.rail = 0, .next_ns = INTERVAL};
	uint64_t lag;

	run(&sim, 3 * S);
	sim.delay[0] = 15 * MS;
	run(&sim, INTERVAL);
	sim.delay[0] = DELAY;
	run(&sim, 20 * MS);
	lag = path_lag_ns(&sim.pair.path[0]);
	CHECK(lag > 10 * MS);
	arrival.received_ns = sim.pair.path[0].excess_turn_ns + S + 500;
	for (int i = 0; i < 2; i++) {
		arrival.sequence = ++sim.sequence[0];
		arrival.sent_ns = arrival.received_ns - DELAY + PEERS_CLOCK;
		pair_arrived(&sim.pair, &arrival);
		CHECK(path_lag_ns(&sim.pair.path[0]) == lag);
		arrival.received_ns -= 1000;
	}
}

static void a_replay_is_refused(void)
{
	struct sim sim = start();
	struct arrival again = {0, 5, sim.now, sim.now, INTERVAL};

	run(&sim, 1 * S);
	for (uint64_t sequence = 1; sequence <= sim.sequence[0]; sequence++) {
		again.sequence = sequence;
		CHECK(!pair_arrived(&sim.pair, &again));
	}
	again.sequence = sim.sequence[0] + 2;
	CHECK(pair_arrived(&sim.pair, &again));
	again.sequence--; /* overtaken on the way: late, but not seen yet */
	CHECK(pair_arrived(&sim.pair, &again));
	CHECK(!pair_arrived(&sim.pair, &again) && sim.pair.path[0].loss.lost == 0);
}

static void what_the_peer_says_counts_as_ours(void)
{
	struct sim sim = start();

	run(&sim, 1 * S);
	sim.pair.path[0].peer_level = LEVEL_DEAD;
	CHECK(pair_members(&sim.pair, 0) == 2 && pair_reason(&sim.pair, 0) == REASON_TOLD);
	run(&sim, 10 * MS);
	sim.pair.path[0].peer_level = LEVEL_GOOD;
	run(&sim, 10 * MS);
	CHECK(pair_members(&sim.pair, 0) == 2 && pair_back_ns(&sim.pair));
	run(&sim, 15 * MS);
	CHECK(pair_members(&sim.pair, 0) == 1 && !pair_back_ns(&sim.pair));
}

static void a_drained_rail_is_used_only_when_no_other_is(void)
{
	struct sim sim = start();

	run(&sim, 1 * S);
	sim.pair.path[0].drained = true;
	CHECK(pair_members(&sim.pair, 0) == 2 && pair_reason(&sim.pair, 0) == REASON_DRAINED);
	sim.loss_percent[1] = 100;
	run(&sim, 100 * MS);
	CHECK(pair_members(&sim.pair, 0) == 1 && pair_members(&sim.pair, 1) == 1);
}

static void a_pin_holds_until_its_rail_dies(void)
{
	struct sim sim = start();

	run(&sim, 1 * S);
	sim.pair.pin = 0;
	CHECK(pair_members(&sim.pair, 1) == 1);
	sim.loss_percent[0] = 100;
	run(&sim, 100 * MS);
	CHECK(pair_members(&sim.pair, 1) == 2 && pair_members(&sim.pair, 0) == 2);
}

/* Whatever the phase in which they begin, and though we wake up a little late each time. */
static void ends_come_to_be_half_a_turn_apart(void)
{
	for (uint64_t phase = 0; phase < INTERVAL; phase += INTERVAL / 10) {
		struct sim sim = start();
		uint64_t turn = sim.now + phase;

		for (unsigned number = 0; number < 400; number++) {
			while (sim.next <= turn) {
				sim.now = sim.next;
				for (unsigned rail = 0; rail < sim.pair.rails; rail++)
					deliver(&sim, rail);
				sim.next += INTERVAL + MS / 50;
			}
			sim.now = turn;
			turn += pair_step_ns(&sim.pair, turn, INTERVAL) + MS / 25;
		}
		CHECK(llabs((int64_t)(sim.now - sim.pair.path[0].heard_ns) - (int64_t)INTERVAL / 2) <
		      (int64_t)INTERVAL / 8);
	}
}

int main(void)
{
	a_healthy_pair_is_left_alone();
	a_silent_rail_is_left_within_5_ms();
	three_quick_answers_elsewhere_are_no_proof_yet();
	a_frozen_peer_is_stalled_not_dead();
	a_peer_run_for_moments_only_is_not_dead();
	our_own_absence_blames_nobody();
	queueing_widens_what_is_waited_for();
	a_busy_host_does_not_put_off_the_verdict();
	one_rail_that_is_late_at_times_is_given_the_time();
	a_queue_longer_than_a_turn_is_learned();
	loss_of_5_percent_is_left_within_250_ms();
	loss_of_one_in_a_thousand_is_lived_with();
	loss_of_large_packets_alone_is_named();
	loss_on_both_rails_moves_nothing();
	a_queue_far_above_the_other_rails_is_left();
	one_probe_that_was_late_moves_nothing();
	what_is_read_later_than_a_newer_one_forgets_nothing();
	a_replay_is_refused();
	what_the_peer_says_counts_as_ours();
	a_drained_rail_is_used_only_when_no_other_is();
	a_pin_holds_until_its_rail_dies();
	ends_come_to_be_half_a_turn_apart();
	return check_failures != 0;
}
