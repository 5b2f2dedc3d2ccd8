/* Shares, the queue's length, and the pace that follows it. */
#include "check.h"
#include "pace.h"
#include "queue.h"
#include "share.h"

#define MS 1000000ull
#define S 1000000000ull

static struct holding job(unsigned slot, unsigned uid, unsigned guarantee, unsigned ceiling)
{
	return (struct holding){slot, {uid, (uint16_t)guarantee, (uint16_t)ceiling, SHARE_NORMAL, false}};
}

static void test_promises_are_kept_and_the_rest_is_everybody_elses(void)
{
	struct holding held[] = {job(0, 1001, 600, 1000), job(3, 1002, 100, 500)};
	struct grant grant[2];

	CHECK(share_plan(held, 2, grant) == 1000 - 700 - SHARE_CONTROL);
	CHECK(grant[0].slot == 0 && grant[0].guarantee == 600 && grant[0].ceiling == 1000);
	CHECK(grant[1].slot == 3 && grant[1].guarantee == 100 && grant[1].ceiling == 500);
}

static void test_promises_that_do_not_fit_are_cut_in_proportion(void)
{
	struct holding held[] = {job(0, 1001, 900, 1000), job(1, 1002, 450, 1000)};
	struct grant grant[2];

	CHECK(share_plan(held, 2, grant) >= SHARE_REST_LEAST);
	CHECK(grant[0].guarantee == 640 && grant[1].guarantee == 320);
}

static void test_jobs_of_one_user_share_the_first_ones_class(void)
{
	struct holding held[] = {job(0, 1001, 200, 300), job(1, 1002, 100, 1000), job(2, 1001, 300, 800)};
	struct grant grant[3];

	share_plan(held, 3, grant);
	CHECK(grant[0].guarantee == 500 && grant[0].ceiling == 800 && !grant[0].idle);
	CHECK(grant[1].guarantee == 100);
	CHECK(grant[2].idle && grant[2].guarantee == 1);
}

static void test_jobs_known_by_their_groups_have_each_its_own(void)
{
	struct holding held[] = {job(0, 1001, 200, 300), job(1, 1001, 100, 1000), job(2, 1001, 300, 800)};
	struct grant grant[3];

	held[0].share.apart = held[2].share.apart = true; /* the second began without */
	share_plan(held, 3, grant);
	CHECK(grant[0].guarantee == 200 && grant[0].ceiling == 300 && !grant[0].idle);
	CHECK(grant[1].guarantee == 100 && !grant[1].idle);
	CHECK(grant[2].guarantee == 300 && grant[2].ceiling == 800 && !grant[2].idle);
}

/* Every rate above zero, whatever is asked: HTB refuses others. */
static void test_no_class_gets_nothing(void)
{
	struct holding held[64];
	struct grant grant[64];

	for (unsigned i = 0; i < 64; i++)
		held[i] = job(i, 1000 + i, i % 3 ? 1000 : 0, 1000);
	CHECK(share_plan(held, 64, grant) >= SHARE_REST_LEAST);
	for (unsigned i = 0; i < 64; i++)
		CHECK(grant[i].guarantee >= 1 && grant[i].ceiling >= grant[i].guarantee);
}

static void test_a_queue_is_what_all_of_the_last_few_waited(void)
{
	struct queue queue = {0};
	uint64_t now = 100 * S;

	for (int i = 0; i < 20; i++)
		queue_take(&queue, -5000000, now += 8 * MS);
	CHECK(queue_ns(&queue) < 1000);
	queue_take(&queue, -2000000, now += 8 * MS); /* one that was late */
	CHECK(queue_ns(&queue) < 1000);
	for (int i = 0; i < QUEUE_RECENT; i++)
		queue_take(&queue, -2000000, now += 8 * MS);
	CHECK(queue_ns(&queue) > 2900000 && queue_ns(&queue) <= 3000000);
}

static void test_clocks_that_drift_make_no_queue(void)
{
	struct queue queue = {0};
	int64_t delay = 1000000;

	for (uint64_t now = 100 * S; now < 200 * S; now += 8 * MS, delay += 400) /* 50 ppm */
		queue_take(&queue, delay, now);
	CHECK(queue_ns(&queue) < 20000);
}

static void test_a_path_seen_anew_has_no_queue(void)
{
	struct queue queue = {0};

	for (int i = 0; i < 10; i++)
		queue_take(&queue, 0, 100 * S + (uint64_t)i * MS);
	for (int i = 0; i < 2; i++)
		queue_take(&queue, 9000000, 200 * S + (uint64_t)i * MS);
	CHECK(queue_ns(&queue) == 0);
}

static struct pace paced(enum share_class class, unsigned guarantee)
{
	struct share share = {1001, (uint16_t)guarantee, SHARE_WHOLE, (uint8_t)class, false};
	struct pace pace;

	pace_init(&pace, &share);
	return pace;
}

static void run(struct pace *pace, uint64_t queue, unsigned steps)
{
	for (unsigned i = 0; i < steps; i++)
		pace_turn(pace, queue, MS / 2, pace->next_ns + 1);
}

static void test_a_job_slows_down_to_its_promise_and_no_further(void)
{
	struct pace last = paced(SHARE_LAST, 0), promised = paced(SHARE_LAST, 600);
	struct pace first = paced(SHARE_FIRST, 0);

	run(&last, 10 * MS, 20);
	run(&promised, 10 * MS, 20);
	run(&first, 10 * MS, 20);
	CHECK(last.rate == 50 && last.throttled_ns);
	CHECK(promised.rate == 600);
	CHECK(first.rate == SHARE_WHOLE && !first.throttled_ns);
}

static void test_a_short_queue_slows_little_and_none_lets_it_rise_again(void)
{
	struct pace pace = paced(SHARE_NORMAL, 0);

	run(&pace, MS / 2 + MS / 20, 1);
	CHECK(pace.rate > 900 && pace.rate < SHARE_WHOLE);
	run(&pace, 0, 10);
	CHECK(pace.rate == SHARE_WHOLE && !pace.throttled_ns);
}

static void test_between_two_steps_nothing_changes(void)
{
	struct pace pace = paced(SHARE_LAST, 0);

	CHECK(pace_turn(&pace, 10 * MS, MS, 100 * S));
	CHECK(!pace_turn(&pace, 10 * MS, MS, 100 * S + PACE_STEP_NS / 2));
	CHECK(!pace_turn(&pace, 10 * MS, 0, 200 * S)); /* no target: never */
}

/* Large probes that are urgent come by another socket, which is read after the first. */
static void test_one_that_is_read_late_does_not_hide_a_queue(void)
{
	struct queue queue = {0};
	uint64_t now = 100 * S;

	queue_take(&queue, 1000000, now);
	for (int i = 0; i < QUEUE_RECENT; i++)
		queue_take(&queue, 9000000, now += 8 * MS);
	queue_take(&queue, 9000000, now - 1000);
	queue_take(&queue, 9000000, now += 8 * MS);
	queue_take(&queue, 9000000, now += 8 * MS);
	CHECK(queue_ns(&queue) > 7 * MS && queue_ns(&queue) <= 8 * MS);
}

int main(void)
{
	test_promises_are_kept_and_the_rest_is_everybody_elses();
	test_promises_that_do_not_fit_are_cut_in_proportion();
	test_jobs_of_one_user_share_the_first_ones_class();
	test_jobs_known_by_their_groups_have_each_its_own();
	test_no_class_gets_nothing();
	test_a_queue_is_what_all_of_the_last_few_waited();
	test_clocks_that_drift_make_no_queue();
	test_a_path_seen_anew_has_no_queue();
	test_one_that_is_read_late_does_not_hide_a_queue();
	test_a_job_slows_down_to_its_promise_and_no_further();
	test_a_short_queue_slows_little_and_none_lets_it_rise_again();
	test_between_two_steps_nothing_changes();
	return check_failures != 0;
}
