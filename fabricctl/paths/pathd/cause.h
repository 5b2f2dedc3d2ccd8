/* What broke, from who is lost to us on a rail and whom those still hear there.
 *
 * The nodes of a job find a fault out one after another, so what can be concluded grows for a
 * while. A cause is told once it has been the same for some time, and told anew when later
 * evidence changes it: the last one told is the best known. */
#ifndef FABRIC_CAUSE_H
#define FABRIC_CAUSE_H

#include <stdbool.h>
#include <stdint.h>

enum cause_what {
	CAUSE_NONE,
	CAUSE_OWN_PORT, /* nobody is reached, and others still hear each other */
	CAUSE_ONE_OF_TWO, /* the only peer: its port or ours, or what is between */
	CAUSE_SWITCH, /* nobody hears anybody */
	CAUSE_PEERS_PORT, /* those that are lost hear nobody either */
	CAUSE_PATH, /* something between us and them */
};

struct census {
	unsigned peers; /* that could be reached on the rail */
	unsigned lost;
	unsigned deaf; /* of the lost: hear nobody on the rail */
	unsigned healing; /* heard again, not yet proven */
	bool carrier; /* of our own port */
};

struct cause {
	enum cause_what told, seen;
	uint64_t since_ns; /* of `seen` */
};

enum cause_what cause_of(const struct census *census);

/* True when `cause->told` is new and not CAUSE_NONE. */
bool cause_turn(struct cause *cause, const struct census *census, uint64_t now_ns,
		uint64_t settle_ns);
const char *cause_name(enum cause_what what);

#endif
