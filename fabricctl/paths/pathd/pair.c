#include "arrival.h"

#include <math.h>
#include <string.h>

/* Grace beyond the promise before a rail is in doubt, and after the evidence before the verdict.
 * Both grow by how much later than the others the rail brings its probes at times. Doubt costs a few
 * packets, so it comes early: TCP's tail loss probe leaves 4 to 8 ms after a loss, and finds the new
 * way only if that is ready by then. */
#define GRACE_NS (MS / 2)
#define VERDICT_NS (MS / 3)
/* Between doubt and verdict at least: answers come at once (WIRE_QUERY), and three of them on one rail
 * alone are no proof while a queue of the host may still hold those of the other. */
#define DOUBT_LEAST_NS (3 * MS / 2)
#define POSTPONE 3
#define STALLED_NS (50 * MS)

/* Failback: the hold (a second of health) is doubled for every recent failure, up to its maximum. */
/* From both ends' verdict to the common instant: so many probes have the time to tell of it. Where nothing
 * is carried, so that they are rare, what tells the verdict (WIRE_NEWS) tells the instant, on every rail. */
#define BACK_NS (20 * MS)
#define BACK_PROBES 4
#define BACK_MAX_NS (100 * MS)
#define FLAP_HALF_LIFE_NS (60 * S)

/* Wald's test of loss (arrival.c): a verdict at odds of e^12. */
#define LOSS_VERDICT 12.0
#define LOSS_DOUBT 3.0
#define DOUBT_NS (300 * MS)
#define PROVEN_PROBES 200
/* Where no rail is good one that has lost none of so many is the better one: 5 % would in one of 26. */
#define CLEAN_PROBES 64

#define SLOW_FOR_NS (60 * MS)
/* Of probation: what still comes late then waited in the queue in which the rail was left. */
#define DRAIN_NS (100 * MS)
/* What a rail's own past is good for: the rest of it may be what it was left for. */
#define OWN_JITTER_NS (10 * MS)

static const char *const REASON_NAMES[REASONS] = {"none", "silent", "carrier", "told",
						  "loss", "size",   "slow",    "drained"};

const char *reason_name(enum reason reason)
{
	return reason < REASONS ? REASON_NAMES[reason] : "unknown";
}

void pair_init(struct pair *pair, unsigned rails, uint64_t now_ns)
{
	memset(pair, 0, sizeof(*pair));
	pair->rails = rails;
	pair->pin = -1;
	pair->hold_ns = 1 * S;
	pair->hold_max_ns = 60 * S;
	for (unsigned rail = 0; rail < rails; rail++) {
		pair->path[rail].carrier = true;
		pair->path[rail].flap_ns = now_ns;
		path_reset(&pair->path[rail], now_ns);
	}
}

void pair_new_session(struct pair *pair, uint64_t session, uint64_t now_ns)
{
	pair->peer_session = session;
	pair->view_sent_ns = 0;
	for (unsigned rail = 0; rail < pair->rails; rail++) {
		path_reset(&pair->path[rail], now_ns);
		pair->path[rail].peer_level = LEVEL_GOOD;
		pair->path[rail].peer_back_ns = 0;
		pair->path[rail].peer_reason = REASON_NONE;
	}
}

static void count_flap(struct path *path, uint64_t now_ns)
{
	path->flaps *= exp2(-(double)(now_ns - path->flap_ns) / (double)FLAP_HALF_LIFE_NS);
	path->flaps += 1;
	path->flap_ns = now_ns;
}

static uint64_t hold_ns(const struct pair *pair, const struct path *path)
{
	double hold = (double)pair->hold_ns * exp2(path->flaps - 1);

	/* Damping begins with the second failure in a while, not with a fraction of the first. */
	if (path->flaps < 1.5)
		return pair->hold_ns;
	return hold > (double)pair->hold_max_ns ? pair->hold_max_ns : (uint64_t)hold;
}

static void begin_proving(struct path *path, uint64_t now_ns)
{
	path->listening = PROVING;
	path->proving_ns = now_ns;
	path->loss = (struct loss){0};
	path->slow_since_ns = 0;
}

void pair_carrier(struct pair *pair, unsigned rail, bool carrier, uint64_t now_ns)
{
	struct path *path = &pair->path[rail];

	if (path->carrier == carrier)
		return;
	path->carrier = carrier;
	if (carrier)
		return; /* what is heard decides from here */
	if (path->listening == HEARD || path->listening == SUSPECT)
		count_flap(path, now_ns);
	path->listening = GONE;
	path->reason = REASON_CARRIER;
	path->gone_ns = now_ns;
}

static enum level worse_level(const struct pair *pair, unsigned rail)
{
	enum level own = pair_own_level(pair, rail), peer = pair->path[rail].peer_level;

	return own > peer ? own : peer;
}

static void mark(struct change_of *change, enum change what, unsigned rail, enum reason reason,
		 uint64_t begin_ns)
{
	*change = (struct change_of){what, rail, reason, begin_ns};
}

/* Another rail on which the peer is well heard: the one to compare with. */
static const struct path *best_other(const struct pair *pair, unsigned rail)
{
	const struct path *best = NULL;

	for (unsigned other = 0; other < pair->rails; other++)
		if (other != rail && pair_level(pair, other) == LEVEL_GOOD &&
		    pair->path[other].listening == HEARD &&
		    (!best || path_jitter_ns(&pair->path[other]) < path_jitter_ns(best)))
			best = &pair->path[other];
	return best;
}

/* It has not proven itself for as long as it must beside one in order. */
static bool clean_so_far(const struct path *path)
{
	return path->listening == PROVING && path->carrier && !path->drained &&
	       path->peer_level < LEVEL_DEAD && !path->loss.lost && !path->slow_since_ns &&
	       path->loss.seen >= CLEAN_PROBES;
}

static const struct path *clean_other(const struct pair *pair, unsigned rail)
{
	for (unsigned other = 0; other < pair->rails; other++)
		if (other != rail && clean_so_far(&pair->path[other]))
			return &pair->path[other];
	return NULL;
}

static bool another_is_good(const struct pair *pair, unsigned rail)
{
	for (unsigned other = 0; other < pair->rails; other++)
		if (other != rail && pair_level(pair, other) == LEVEL_GOOD)
			return true;
	return false;
}

static enum reason judge_quality(const struct pair *pair, unsigned rail, uint64_t now_ns)
{
	const struct path *path = &pair->path[rail], *good = best_other(pair, rail);
	const struct path *other = good ? good : clean_other(pair, rail);

	if (!other)
		return REASON_NONE; /* nowhere better to go */
	if (path->loss.small > LOSS_VERDICT && other->loss.small < LOSS_VERDICT / 2)
		return REASON_LOSS;
	if (path->loss.large > LOSS_VERDICT && other->loss.large < LOSS_VERDICT / 2)
		return path->loss.small > LOSS_DOUBT ? REASON_LOSS : REASON_SIZE;
	/* One that carries nothing has no queue: that is no merit. */
	if (good && path->slow_since_ns && now_ns > path->slow_since_ns + SLOW_FOR_NS &&
	    path_jitter_ns(good) < SLOW_NS / 2)
		return REASON_SLOW;
	return REASON_NONE;
}

/* Overdue: in doubt, which asks for quick probes, and nothing more. */
static void doubt_if_overdue(struct path *path, uint64_t now_ns)
{
	if (now_ns <= path->due_ns + GRACE_NS + path_lag_ns(path))
		return;
	path->unproven = path->listening == PROVING;
	path->listening = SUSPECT;
	path->suspect_ns = now_ns;
	path->postponed = 0;
}

static bool evaluate_heard(struct pair *pair, unsigned rail, uint64_t now_ns,
			   struct change_of *change)
{
	struct path *path = &pair->path[rail];
	enum reason reason = judge_quality(pair, rail, now_ns);

	if (reason != REASON_NONE) {
		mark(change, CHANGE_POOR, rail, reason,
		     reason == REASON_SLOW ? path->slow_since_ns : path->heard_ns);
		count_flap(path, now_ns);
		begin_proving(path, now_ns);
		path->reason = reason;
		return true;
	}
	doubt_if_overdue(path, now_ns);
	if (path->loss.small > LOSS_DOUBT || path->loss.large > LOSS_DOUBT) {
		if (pair->doubt_until_ns + 2 * DOUBT_NS < now_ns)
			pair->doubt_until_ns = now_ns + DOUBT_NS;
	}
	return false;
}

static bool evaluate_suspect(struct path *path, unsigned rail, uint64_t now_ns, bool late,
			     struct change_of *change)
{
	if (path->heard_ns > path->suspect_ns) {
		path->listening = path->unproven ? PROVING : HEARD;
		return false;
	}
	if (path->evidence < EVIDENCE || now_ns < path->suspect_ns + DOUBT_LEAST_NS ||
	    now_ns < path->evidence_ns + VERDICT_NS + path_lag_ns(path))
		return false;
	if (late && path->postponed++ < POSTPONE) {
		/* We run before the kernel's own threads: what should have arrived may still
		 * wait in one of its queues. Give it the time once more. */
		path->evidence_ns = now_ns;
		return false;
	}
	path->listening = GONE;
	path->gone_ns = now_ns;
	if (path->unproven)
		return false; /* it was not in use: nothing new to tell */
	path->reason = REASON_SILENT;
	count_flap(path, now_ns);
	mark(change, CHANGE_GONE, rail, REASON_SILENT, path->heard_ns);
	return true;
}

/* That a lossy rail lost none of so many is no accident: 3 % would do it once in 400 times. */
static bool seen_enough(const struct path *path)
{
	return (path->reason != REASON_LOSS && path->reason != REASON_SIZE) ||
	       path->loss.seen >= PROVEN_PROBES;
}

static bool evaluate_proving(struct pair *pair, unsigned rail, uint64_t now_ns,
			     struct change_of *change)
{
	struct path *path = &pair->path[rail];

	if (now_ns - path->proving_ns < DRAIN_NS)
		path->lag_ns[0] = path->lag_ns[1] = 0;
	if (path->loss.lost || path->slow_since_ns) {
		begin_proving(path, now_ns);
	} else if ((now_ns - path->proving_ns >= hold_ns(pair, path) && seen_enough(path)) ||
		   (clean_so_far(path) && !another_is_good(pair, rail))) {
		mark(change, CHANGE_GOOD, rail, path->reason, path->proving_ns);
		path->listening = HEARD;
		path->reason = REASON_NONE;
		return true;
	}
	doubt_if_overdue(path, now_ns);
	return false;
}

static bool evaluate_path(struct pair *pair, unsigned rail, uint64_t now_ns, bool late,
			  struct change_of *change)
{
	struct path *path = &pair->path[rail];

	switch (path->listening) {
	case HEARD:
		return evaluate_heard(pair, rail, now_ns, change);
	case SUSPECT:
		return evaluate_suspect(path, rail, now_ns, late, change);
	case GONE:
		if (path->carrier && path->heard_ns > path->gone_ns)
			begin_proving(path, now_ns);
		return false;
	case PROVING:
		return evaluate_proving(pair, rail, now_ns, change);
	}
	return false;
}

/* Silent wherever it could be heard: no verdict on any rail, but worth telling. */
static bool evaluate_stall(struct pair *pair, uint64_t now_ns, struct change_of *change)
{
	uint64_t newest = 0;
	bool silent = true;

	for (unsigned rail = 0; rail < pair->rails; rail++) {
		const struct path *path = &pair->path[rail];

		silent &= path->listening == SUSPECT || path->listening == GONE;
		if (path->heard_ns > newest)
			newest = path->heard_ns;
	}
	if (silent && !pair->stalled_ns)
		pair->stalled_ns = now_ns;
	if (silent && !pair->said_stalled && now_ns - pair->stalled_ns > STALLED_NS) {
		pair->said_stalled = true;
		mark(change, CHANGE_STALLED, 0, REASON_SILENT, newest);
		return true;
	}
	if (silent)
		return false;
	pair->stalled_ns = 0;
	if (pair->said_stalled) {
		pair->said_stalled = false;
		mark(change, CHANGE_BACK, 0, REASON_NONE, newest);
		return true;
	}
	return false;
}

/* Whoever comes back brings along what waited for it elsewhere: until it is seen here, late is not
 * silent. */
static void expect_queue(struct pair *pair, unsigned rail)
{
	struct path *path = &pair->path[rail];

	for (unsigned other = 0; other < pair->rails; other++) {
		uint64_t jitter = path_jitter_ns(&pair->path[other]);

		if (other == rail && jitter > OWN_JITTER_NS)
			jitter = OWN_JITTER_NS;
		if (pair_level(pair, other) == LEVEL_GOOD && jitter > path->lag_ns[0])
			path->lag_ns[0] = jitter;
	}
}

/* The end that sees first that both find the rail good sets the instant, and tells it in each of its
 * probes until then; where both did, the earlier one holds. */
static void agree_on_failback(struct pair *pair, unsigned rail, uint64_t now_ns)
{
	struct path *path = &pair->path[rail];
	uint64_t promise = path->due_ns > path->heard_ns ? path->due_ns - path->heard_ns : 0;

	if (worse_level(pair, rail) != LEVEL_GOOD) {
		path->apart = true;
		path->back_ns = path->peer_back_ns = 0;
		return;
	}
	if (!path->apart)
		return;
	if (!path->back_ns) {
		uint64_t wait = promise < BACK_NS / BACK_PROBES ? BACK_NS : promise * BACK_PROBES;

		path->back_ns = now_ns + (wait < BACK_MAX_NS ? wait : BACK_MAX_NS);
	}
	if (path->peer_back_ns && path->peer_back_ns < path->back_ns)
		path->back_ns = path->peer_back_ns;
	if (now_ns < path->back_ns)
		return;
	path->apart = false;
	path->back_ns = path->peer_back_ns = 0;
	expect_queue(pair, rail);
}

uint64_t pair_back_ns(const struct pair *pair)
{
	uint64_t next = 0;

	for (unsigned rail = 0; rail < pair->rails; rail++) {
		uint64_t back = pair->path[rail].apart ? pair->path[rail].back_ns : 0;

		if (back && (!next || back < next))
			next = back;
	}
	return next;
}

unsigned pair_evaluate(struct pair *pair, uint64_t now_ns, bool late,
		       struct change_of changes[MAX_RAILS + 1])
{
	unsigned count = 0;

	for (unsigned rail = 0; rail < pair->rails; rail++)
		count += evaluate_path(pair, rail, now_ns, late, &changes[count]);
	for (unsigned rail = 0; rail < pair->rails; rail++)
		agree_on_failback(pair, rail, now_ns);
	count += evaluate_stall(pair, now_ns, &changes[count]);
	return count;
}

enum level pair_own_level(const struct pair *pair, unsigned rail)
{
	const struct path *path = &pair->path[rail];

	if (!path->carrier || path->listening == GONE)
		return LEVEL_DEAD;
	if (path->listening == PROVING || (path->listening == SUSPECT && path->unproven))
		return LEVEL_POOR;
	return path->drained ? LEVEL_POOR : LEVEL_GOOD;
}

enum level pair_level(const struct pair *pair, unsigned rail)
{
	enum level level = worse_level(pair, rail);

	return level == LEVEL_GOOD && pair->path[rail].apart ? LEVEL_POOR : level;
}

enum reason pair_reason(const struct pair *pair, unsigned rail)
{
	const struct path *path = &pair->path[rail];

	if (pair_own_level(pair, rail) == LEVEL_GOOD)
		return path->peer_level == LEVEL_GOOD ? REASON_NONE : REASON_TOLD;
	return path->drained && path->listening == HEARD ? REASON_DRAINED : path->reason;
}

/* Our own choice by hand before the peer's. */
static int pinned_rail(const struct pair *pair)
{
	if (pair->pin >= 0)
		return pair->pin;
	for (unsigned rail = 0; rail < pair->rails; rail++)
		if (pair->path[rail].peer_pinned)
			return (int)rail;
	return -1;
}

uint8_t pair_members(const struct pair *pair, unsigned rail)
{
	int pin = pinned_rail(pair);
	enum level best = LEVELS;
	uint8_t members = 0;

	for (unsigned other = 0; other < pair->rails; other++) {
		enum level level = pair_level(pair, other);

		if (level < best) {
			best = level;
			members = 0;
		}
		if (level == best)
			members |= (uint8_t)(1u << other);
	}
	if (pin >= 0 && pair_level(pair, (unsigned)pin) < LEVEL_DEAD)
		return (uint8_t)(1u << pin);
	if (members & ~pair->away)
		members &= (uint8_t)~pair->away;
	return members >> rail & 1 ? (uint8_t)(1u << rail) : members;
}

bool pair_in_doubt(const struct pair *pair, uint64_t now_ns)
{
	for (unsigned rail = 0; rail < pair->rails; rail++)
		if (pair->path[rail].listening == SUSPECT && pair->path[rail].carrier)
			return true;
	return now_ns < pair->doubt_until_ns;
}

uint64_t pair_step_ns(const struct pair *pair, uint64_t now_ns, uint64_t turn_ns)
{
	int64_t most = (int64_t)turn_ns / TURN_STEPS, late;
	uint64_t heard = 0;

	for (unsigned rail = 0; rail < pair->rails; rail++)
		if (pair->path[rail].heard_ns > heard)
			heard = pair->path[rail].heard_ns;
	if (now_ns - heard >= turn_ns)
		return turn_ns;
	late = (int64_t)(now_ns - heard) - (int64_t)turn_ns / 2;
	late = late > most ? most : late < -most ? -most : late;
	return turn_ns - (uint64_t)late;
}
