/* One peer as seen over every rail, and the verdicts on it: pure computation, no clock of its own,
 * no sockets. All times are this node's CLOCK_MONOTONIC in ns unless named `sent` (the peer's).
 *
 * The comparative rule: a rail is called silent only when of three turns in a row, in each of
 * which the peer sends on all rails, nothing came here and something did elsewhere.
 * A peer that is silent everywhere is a stalled host (or ours is): no verdict. */
#ifndef FABRIC_PAIR_H
#define FABRIC_PAIR_H

#include "address.h"
#include "queue.h"

#define MS 1000000ull
#define S 1000000000ull

enum level {
	LEVEL_GOOD,
	LEVEL_POOR, /* carries packets: lossy, slow, drained, or not yet proven again */
	LEVEL_DEAD,
	LEVELS
};

enum reason {
	REASON_NONE,
	REASON_SILENT, /* probes stopped while another rail delivered them */
	REASON_CARRIER, /* our own port has no carrier */
	REASON_TOLD, /* the peer finds the rail bad */
	REASON_LOSS, /* random loss */
	REASON_SIZE, /* loss of large packets only */
	REASON_SLOW, /* queueing far above the other rails' */
	REASON_DRAINED, /* an administrator took the rail out */
	REASONS
};

enum listening { HEARD, SUSPECT, GONE, PROVING };

#define LARGE_EVERY 4 /* of the probes of a rail, those with seq % 4 == 0 have the MTU's size */

/* Of the last turns of the peer the delays are kept: longer than a queue holds a probe. */
#define PATH_TURNS 32

struct loss {
	double small, large; /* sequential probability ratio, log; 0 is its floor */
	uint64_t lost, seen;
};

struct path {
	enum listening listening;
	enum reason reason; /* why it is not GOOD; of the past while PROVING */
	bool carrier, drained;
	bool unproven; /* SUSPECT while it was PROVING: it falls back into that */
	uint64_t heard_ns; /* newest arrival */
	uint64_t due_ns; /* when the next probe was promised at the latest */
	uint64_t suspect_ns, evidence_ns, gone_ns, proving_ns;
	unsigned evidence; /* turns of the peer that came on other rails and not here */
	uint64_t evidence_sent_ns; /* the newest of them; the peer's clock */
	unsigned postponed; /* verdicts put off because we ran late */
	uint64_t sequence, window; /* newest of the peer's, and a bit for each of the 64 before */
	struct loss loss;
	/* Delay of arrivals: sent and received are of two clocks, so only differences count. */
	int64_t delay_floor_ns, delay_floor_next_ns;
	uint64_t floor_turn_ns;
	uint64_t excess_ns[2]; /* largest delay above the floor, this second and the last */
	uint64_t excess_turn_ns, slow_since_ns;
	/* How much later than another rail's probe of the same moment it came, at most: what makes
	 * both late (a busy host, at either end) is no jitter of this rail. */
	uint64_t lag_ns[2];
	struct {
		uint32_t sent_us, excess_us; /* the first comes round after 71 minutes */
	} turn[PATH_TURNS];
	unsigned turns;
	uint64_t newest_sent_ns;
	uint64_t round_trip_ns, round_trip_floor_ns;
	double flaps; /* recent failures; halves every FLAP_HALF_LIFE */
	uint64_t flap_ns;
	/* What the peer says of this rail, from its newest probe on any rail. */
	uint8_t peer_level, peer_reason, peer_hears;
	bool peer_pinned;
	/* Both ends have found it good, or one has not: it is used again at an instant that both
	 * know, by how long it is until then when a probe leaves. */
	bool apart; /* it was not good for both lately: what it carries waits for that instant */
	uint64_t back_ns, peer_back_ns; /* 0: not set */
	struct queue queue; /* of what the peer sends: large packets, in the class of the job's own */
	uint64_t peer_queue_ns; /* of what we send, as the peer measures it */
};

struct pair {
	unsigned rails;
	struct path path[MAX_RAILS];
	uint64_t peer_session; /* 0: never heard */
	uint64_t view_sent_ns; /* the peer's clock: age of what it said last */
	uint64_t doubt_until_ns; /* ask for quick probes until then */
	uint64_t stalled_ns; /* since when the peer is silent on every rail; 0: it is not */
	bool said_stalled;
	int pin; /* rail chosen by hand, -1: none */
	uint8_t away; /* rails in order that are left alone while another has room (reroute.h) */
	uint64_t hold_ns, hold_max_ns; /* health before failback; the most that flaps make of it */
};

struct arrival {
	unsigned rail;
	uint64_t sequence, sent_ns, received_ns, next_ns; /* next_ns: promise, a duration */
};

enum change { CHANGE_NONE, CHANGE_GONE, CHANGE_POOR, CHANGE_GOOD, CHANGE_STALLED, CHANGE_BACK };

struct change_of {
	enum change change;
	unsigned rail;
	enum reason reason;
	uint64_t begin_ns; /* when it truly began, as well as it can be known */
};

void pair_init(struct pair *pair, unsigned rails, uint64_t now_ns);
void pair_new_session(struct pair *pair, uint64_t session, uint64_t now_ns);

/* False for a sequence number that was seen before or is too old to tell: a replay. */
bool pair_arrived(struct pair *pair, const struct arrival *arrival);

void pair_carrier(struct pair *pair, unsigned rail, bool carrier, uint64_t now_ns);

/* Looks at all rails. `late` when this process itself was not run for a while: suspicions begin
 * anew then. At most one change per rail and one for the pair; returns how many. */
unsigned pair_evaluate(struct pair *pair, uint64_t now_ns, bool late,
		       struct change_of changes[MAX_RAILS + 1]);

enum level pair_own_level(const struct pair *pair, unsigned rail);
enum level pair_level(const struct pair *pair, unsigned rail); /* worse of own and the peer's */
enum reason pair_reason(const struct pair *pair, unsigned rail);

/* Which rails should carry what is sent to the peer's fabric address of `rail`. */
uint8_t pair_members(const struct pair *pair, unsigned rail);

/* The next instant at which some rail is used again; 0: none is agreed. */
uint64_t pair_back_ns(const struct pair *pair);

/* True while quick probes are wanted: some rail is in doubt. */
bool pair_in_doubt(const struct pair *pair, uint64_t now_ns);

/* Until our next turn, where both ends take one in every `turn_ns`: so that we come to be half a turn
 * apart. Then what either end sends has arrived when the other looks, and what is missing is noticed
 * soonest. At most 1/TURN_STEPS longer or shorter than a turn, which is within the grace of a promise. */
#define TURN_STEPS 32
uint64_t pair_step_ns(const struct pair *pair, uint64_t now_ns, uint64_t turn_ns);

uint64_t path_jitter_ns(const struct path *path);
uint64_t path_lag_ns(const struct path *path);
const char *reason_name(enum reason reason);

#endif
