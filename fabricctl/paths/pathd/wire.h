/* The two messages between fabric-pathd of one job: probes on the rails, hellos on the management
 * network. All numbers little-endian; the last eight bytes of what is authenticated are its
 * SipHash-2-4 tag. A large probe has padding behind the tag.
 *
 *   0  magic "FpP3"      4  type (1 probe, 2 hello)   5  rail of the probe, 255 in a hello
 *   6  flags (what is urgent wakes the receiver, sockets.c)   7  rails of the sender
 *   8  from, 12 to: numbers of the nodes in the job's node list
 *  16  session: random per start of the sender
 *  24  to_session: the receiver's, as the sender knows it; 0: not yet. What is not addressed to
 *      the session that reads it proves nothing about its age: it is answered, not believed
 *  32  sequence: per receiver and rail, from 1
 *  40  sent_ns: the sender's CLOCK_MONOTONIC
 * probe:
 *  48  echo_sent_ns of the newest probe that the sender got on this rail, 0: none
 *  56  echo_hold_ns (u32): between its arrival and this sending
 *  60  next_us (u32): the next probe on this rail comes within that time
 *  64  per rail: level, reason, hears (percent of its peers that the sender hears there; 255: no
 *      peers), pinned (1: an administrator sends all traffic of this pair there), queue (u16: how
 *      long what the receiver sends waits on the way, in units of 4 us), back (u16: in how long the
 *      sender uses the rail again, in units of 10 us; 0: nothing is agreed)
 * hello:
 *  48  phase, 49  0, 50  port of the sender's probes (u16), 52  origin (u32): of a phase `off`, the
 *      number of the node that could not take part in the first place
 *  56  per rail: IPv4 address (4), its prefix length (1), 0 (3), IPv6 address (16) */
#ifndef FABRIC_WIRE_H
#define FABRIC_WIRE_H

#include "address.h"
#include "siphash.h"

#define WIRE_MAX 512
#define WIRE_HELLO_RAIL 255
#define WIRE_QUEUE_NS 4000
#define WIRE_BACK_NS 10000

enum wire_type { WIRE_PROBE = 1, WIRE_HELLO = 2 };
/* QUERY: please answer on all rails at once. NEWS: the sender's view of some rail has changed. */
enum wire_flag { WIRE_QUERY = 1, WIRE_LARGE = 2, WIRE_NEWS = 4 };
#define WIRE_URGENT (WIRE_QUERY | WIRE_NEWS)
#define WIRE_FLAGS_AT 6
enum phase { PHASE_STARTING, PHASE_HAVE, PHASE_READY, PHASE_OFF };

struct wire_view {
	uint8_t level, reason, hears, pinned;
	uint16_t queue, back;
};

struct wire_rail {
	struct net net4;
	struct ip ip6;
};

struct wire {
	uint8_t type, rail, flags, rails;
	uint32_t from, to;
	uint64_t session, to_session, sequence, sent_ns;
	union {
		struct {
			uint64_t echo_sent_ns;
			uint32_t echo_hold_ns, next_us;
			struct wire_view view[MAX_RAILS];
		} probe;
		struct {
			uint8_t phase;
			uint16_t port;
			uint32_t origin;
			struct wire_rail rail[MAX_RAILS];
		} hello;
	};
};

/* Bytes written to `data`, which holds WIRE_MAX. */
size_t wire_encode(const struct wire *wire, const uint8_t key[SIPHASH_KEY_BYTES], uint8_t *data);

/* False for whatever the key did not make. Only then is anything of it looked at. */
bool wire_decode(struct wire *wire, const uint8_t key[SIPHASH_KEY_BYTES], const uint8_t *data,
		 size_t size);

#endif
