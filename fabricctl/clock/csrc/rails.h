/* One rail's socket: batches of probes in and out with their stamps: the kernel's (CLOCK_REALTIME), and
 * where the NIC gives them those of its own clock. 0: there is none. */
#ifndef FABRIC_CLOCK_RAILS_H
#define FABRIC_CLOCK_RAILS_H

#include "engine.h"

#define RAIL_BATCH 64

struct rail_arrived {
	struct probe probe;
	int64_t real_ns, phc_ns;
};

struct rail_out {
	struct probe probe;
	unsigned bytes;
	bool stamped; /* when it leaves is asked for */
	const struct sockaddr *to;
	socklen_t to_size;
};

struct rail_sent {
	uint32_t to, seq;
	int64_t real_ns, phc_ns; /* one of them */
};

bool rail_address(
	const char *text, uint16_t port, struct sockaddr_storage *address, socklen_t *size
);
/* phc: place of the NIC's clock in the engine; -1: its stamps are not asked for. */
int rail_open(
	struct rail *rail, const char *address, uint16_t port, const char *interface, int phc
);
unsigned rail_probe_bytes(const struct rail *rail, unsigned size_class);
/* What could not be sent is left out: it counts as lost. */
void rail_send(struct rail *rail, const struct rail_out *out, unsigned count);
/* Up to RAIL_BATCH probes of the right size that wait, the number; fewer: nothing is left. */
int rail_read_arrived(struct rail *rail, struct rail_arrived arrived[RAIL_BATCH]);
/* The same for transmit stamps of our own probes. */
int rail_read_sent(struct rail *rail, uint64_t session, struct rail_sent sent[RAIL_BATCH]);
/* Asks for another transmit stamp when the driver gives none; chooses between the kernel's stamps and
 * the NIC's. */
void rail_choose_stamps(struct rail *rail);

#endif
