#include "pair.h"

#include <math.h>
#include <string.h>

/* Grace beyond the promise before a rail is in doubt, and after the evidence before the verdict.
 * Both grow by how much later than the others the rail brings its probes at times. Doubt costs a few packets, so it comes early: TCP's tail
 * loss probe leaves 4 to 8 ms after a loss, and finds the new way only if that is ready by then. */
#define GRACE_NS (MS / 2)
#define VERDICT_NS (MS / 3)
#define EVIDENCE 3 /* turns in which the peer sent here and elsewhere, and only that came */
#define POSTPONE 3
#define JITTER_MAX_NS (200 * MS)
#define SAME_MOMENT_US 250 /* between the probes of one turn on all rails */
#define EXCESS_TURN_NS S
#define FLOOR_TURN_NS (10 * S) /* two clocks drift 50 ppm apart at most: 0.5 ms in that time */
#define FIRST_PROMISE_NS (1 * S) /* to a peer of which nothing was heard yet */
#define STALLED_NS (50 * MS)

/* Failback: the hold (a second of health) is doubled for every recent failure, up to its maximum. */
#define FLAP_HALF_LIFE_NS (60 * S)

/* Wald's test of loss: 0.1 % (a link in order) against 3 %; a verdict at odds of e^12. */
#define LOSS_PER_LOST 3.401
#define LOSS_PER_SEEN 0.0295
#define LOSS_VERDICT 12.0
#define LOSS_DOUBT 3.0
#define DOUBT_NS (300 * MS)
#define PROVEN_PROBES 200

#define SLOW_NS (20 * MS) /* queueing that no queue of a healthy rail holds beside an empty one */
#define SLOW_FOR_NS (60 * MS)

static const char *const REASON_NAMES[REASONS] = {"none", "silent", "carrier", "told",
						  "loss", "size",   "slow",    "drained"};

const char *reason_name(enum reason reason)
{
	return reason < REASONS ? REASON_NAMES[reason] : "unknown";
}

static void path_reset(struct path *path, uint64_t now_ns)
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
		pair->path[rail].peer_reason = REASON_NONE;
	}
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

	if (now - path->floor_turn_ns > FLOOR_TURN_NS) {
		path->delay_floor_ns = path->delay_floor_next_ns;
		path->delay_floor_next_ns = INT64_MAX;
		path->floor_turn_ns = now;
	}
	if (delay < path->delay_floor_ns)
		path->delay_floor_ns = delay;
	if (delay < path->delay_floor_next_ns)
		path->delay_floor_next_ns = delay;
	if (now - path->excess_turn_ns > EXCESS_TURN_NS) {
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

static enum reason judge_quality(const struct pair *pair, unsigned rail, uint64_t now_ns)
{
	const struct path *path = &pair->path[rail], *other = best_other(pair, rail);

	if (!other)
		return REASON_NONE; /* nowhere better to go */
	if (path->loss.small > LOSS_VERDICT && other->loss.small < LOSS_VERDICT / 2)
		return REASON_LOSS;
	if (path->loss.large > LOSS_VERDICT && other->loss.large < LOSS_VERDICT / 2)
		return path->loss.small > LOSS_DOUBT ? REASON_LOSS : REASON_SIZE;
	if (path->slow_since_ns && now_ns - path->slow_since_ns > SLOW_FOR_NS &&
	    path_jitter_ns(other) < SLOW_NS / 2)
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
	if (path->evidence < EVIDENCE ||
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

	if (path->loss.lost || path->slow_since_ns) {
		begin_proving(path, now_ns);
	} else if (now_ns - path->proving_ns >= hold_ns(pair, path) && seen_enough(path)) {
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

unsigned pair_evaluate(struct pair *pair, uint64_t now_ns, bool late,
		       struct change_of changes[MAX_RAILS + 1])
{
	unsigned count = 0;

	for (unsigned rail = 0; rail < pair->rails; rail++)
		count += evaluate_path(pair, rail, now_ns, late, &changes[count]);
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
	enum level own = pair_own_level(pair, rail), peer = pair->path[rail].peer_level;

	return own > peer ? own : peer;
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
