/* What jobs were promised of every rail, and the classes that keep it: pure computation.
 *
 * Shares are in permille of a rail's rate. Where the kernel tells the jobs of a node apart by the uid
 * that sends alone, jobs of one user on one node share one class. */
#ifndef FABRIC_SHARE_H
#define FABRIC_SHARE_H

#include <stdbool.h>
#include <stdint.h>

#define SHARE_WHOLE 1000
#define SHARE_CONTROL 20 /* of the probes and of the clock's: small packets, first of all */
#define SHARE_CONTROL_MOST 100
#define SHARE_REST_LEAST 20 /* what is left to everybody else, whatever was promised */

enum share_class { SHARE_FIRST, SHARE_NORMAL, SHARE_LAST, SHARE_CLASSES };

struct share {
	unsigned uid;
	uint16_t guarantee, ceiling; /* ceiling 0: no share was asked for */
	uint8_t class;
	bool apart; /* known by its control group, not by the uid alone */
};

/* One job's class: as granted. `idle`: an earlier job of the same user has the user's traffic. */
struct grant {
	unsigned slot;
	uint16_t guarantee, ceiling;
	uint8_t class;
	bool idle;
};

struct holding { /* a job's lease */
	unsigned slot;
	struct share share;
};

/* One grant a holding, in the same order; returns what is guaranteed to everybody else. Promises
 * that do not fit together are cut in proportion. */
uint16_t share_plan(const struct holding *holding, unsigned count, struct grant *grant);

#endif
