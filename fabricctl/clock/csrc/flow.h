/* One peer on one rail: what was sent and received, replay protection, counters, and the joining
 * of both ends' stamps into samples. Pure: no sockets, no clocks. */
#ifndef FABRIC_CLOCK_FLOW_H
#define FABRIC_CLOCK_FLOW_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/socket.h>

#include "probe.h"

#define FLOW_RING 256 /* probes remembered in each direction; over a second at 100 pairs/s */

struct stamp {
	uint32_t seq;
	uint8_t source;
	bool paired; /* a sample was made of it */
	uint16_t error_ns; /* at most; STAMP_HARDWARE only */
	int64_t node_ns;
};

/* A packet with the stamps of both ends, each in its own node time (docs/clock.md). */
struct sample {
	uint32_t peer;
	uint32_t seq;
	uint8_t rail;
	uint8_t inbound; /* 1: from the peer to us */
	uint8_t size_class;
	uint8_t sent_source, received_source;
	uint8_t pad;
	uint16_t error_ns; /* of both stamps together */
	int64_t sent_ns, received_ns;
};

struct flow_counters {
	uint32_t peer;
	uint8_t rail, heard, pad[2];
	uint32_t sent[PROBE_SIZES]; /* to the peer */
	uint32_t arrived[PROBE_SIZES]; /* from the peer */
	uint32_t expected[PROBE_SIZES]; /* from the peer, by its sequence numbers */
	uint32_t duplicates, reordered; /* from the peer */
	uint32_t peer_arrived[PROBE_SIZES]; /* to the peer, as it says */
	uint32_t peer_duplicates, peer_reordered;
	uint32_t refused; /* replayed or of another session */
	uint64_t tagless; /* filled by the engine: failed the tag, for all flows together */
};

struct flow {
	bool used;
	uint8_t rail;
	bool owner; /* we make the samples of this edge; else the peer does */
	uint32_t peer;
	struct sockaddr_storage address;
	socklen_t address_size;
	uint64_t session; /* the peer's; 0: not known */
	uint64_t candidate; /* said by a probe that proved nothing yet */
	uint32_t next_seq;
	uint32_t highest; /* of the peer's */
	uint64_t seen; /* bit i: highest - i was received */
	struct stamp sent[FLOW_RING], received[FLOW_RING]; /* by sequence number */
	uint32_t sent_log[FLOW_RING], received_log[FLOW_RING]; /* in the order known, for records */
	uint32_t sent_logged, received_logged;
	struct flow_counters counters;
};

/* Takes a sample; the engine's buffer. */
typedef void (*sample_sink)(void *context, const struct sample *sample);

void flow_reset_peer(struct flow *flow, uint64_t session);
/* Fills the next probe but its tag, and counts it as sent. */
void flow_next_probe(
	struct flow *flow, uint32_t me, uint64_t session, int64_t user_ns, struct probe *probe
);
/* A stamp of our probe stamp->seq. The one nearest to the wire is kept. */
void flow_sent_stamp(struct flow *flow, const struct stamp *stamp);
/* A probe whose tag was right, and when it came (its seq is not read). False: refused as replayed or
 * of another session. */
bool flow_take_probe(
	struct flow *flow,
	const struct probe *probe,
	uint64_t own_session,
	const struct stamp *stamp,
	sample_sink sink,
	void *context
);

#endif
