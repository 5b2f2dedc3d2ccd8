/* The clock's probe on the wire; all numbers little-endian. docs/clock.md draws it.
 *
 * Probes go in pairs, back to back: seq is even in the first and odd in the second. A probe
 * carries back what its sender knows of earlier ones: when its own left and when the receiver's
 * arrived. Only the first PROBE_BYTES count; what follows pads the probe to its size class. */
#ifndef FABRIC_CLOCK_PROBE_H
#define FABRIC_CLOCK_PROBE_H

#include <stdint.h>

#define PROBE_MAGIC 0x31434246u /* "FBC1" */
#define PROBE_RECORDS 4
#define PROBE_SIZES 3 /* classes: small, half the MTU, the MTU */

enum stamp_source {
	STAMP_NONE = 0,
	STAMP_USER = 1, /* read beside the system call */
	STAMP_SCHED = 2, /* kernel, before the queueing discipline */
	STAMP_SOFTWARE = 3, /* kernel, at the driver */
	STAMP_HARDWARE = 4, /* NIC, at the wire */
};

struct probe_record {
	uint32_t seq;
	uint8_t source; /* enum stamp_source; STAMP_NONE: the record is empty */
	uint8_t pad;
	uint16_t error_ns; /* of a NIC's stamp in node time; 0 of the others */
	int64_t node_ns; /* node time (docs/clock.md) of who stamped it */
} __attribute__((packed));

struct probe {
	uint32_t magic;
	uint8_t rail;
	uint8_t pad[3];
	uint32_t from, to; /* places in the allocation's node list */
	uint64_t session; /* the sender's, random at its start */
	uint64_t to_session; /* the receiver's as the sender knows it, else 0 */
	uint32_t seq;
	uint32_t duplicates; /* counters of what came from the receiver, since the session began */
	uint32_t reordered;
	uint32_t arrived[PROBE_SIZES];
	struct probe_record sent[PROBE_RECORDS]; /* seq: the sender's own earlier probes */
	struct probe_record received[PROBE_RECORDS]; /* seq: the receiver's, as they arrived */
	uint64_t tag; /* SipHash-2-4 of all before */
} __attribute__((packed));

#define PROBE_BYTES ((unsigned)sizeof(struct probe))

/* Of 32 pairs one is of half the MTU and one of the MTU. */
static inline unsigned probe_size_class(uint32_t seq)
{
	unsigned pair = seq / 2 % 32;

	return pair == 15 ? 1 : pair == 31 ? 2 : 0;
}

#endif
