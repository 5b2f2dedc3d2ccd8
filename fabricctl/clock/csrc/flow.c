#include "flow.h"

#include <endian.h>
#include <string.h>

#define WINDOW 64 /* bits of flow->seen */

void flow_reset_peer(struct flow *flow, uint64_t session)
{
	flow->session = session;
	flow->candidate = 0;
	flow->highest = 0;
	flow->seen = 0;
	flow->received_logged = 0;
	memset(flow->received, 0, sizeof(flow->received));
	memset(flow->counters.arrived, 0, sizeof(flow->counters.arrived));
	memset(flow->counters.expected, 0, sizeof(flow->counters.expected));
	flow->counters.duplicates = flow->counters.reordered = 0;
	memset(flow->counters.peer_arrived, 0, sizeof(flow->counters.peer_arrived));
}

/* Four stamps from the end of a log; the second probe of a pair carries the four before, so that
 * each travels twice. */
static void put_records(
	struct probe_record *to,
	const struct stamp *ring,
	const uint32_t *log,
	uint32_t logged,
	unsigned back
)
{
	for (unsigned i = 0; i < PROBE_RECORDS; i++) {
		unsigned place = back + i + 1;
		const struct stamp *from;

		if (place > logged || place > FLOW_RING)
			return;
		from = &ring[log[(logged - place) % FLOW_RING] % FLOW_RING];
		to[i].seq = htole32(from->seq);
		to[i].source = from->source;
		to[i].error_ns = htole16(from->error_ns);
		to[i].node_ns = (int64_t)htole64((uint64_t)from->node_ns);
	}
}

void flow_next_probe(
	struct flow *flow, uint32_t me, uint64_t session, int64_t user_ns, struct probe *probe
)
{
	uint32_t seq = ++flow->next_seq; /* from 2 on: 0 marks an empty place, 1 is half a pair */
	unsigned back = seq % 2 ? PROBE_RECORDS : 0;
	struct stamp *sent;

	if (seq < 2) {
		seq = flow->next_seq = 2;
		back = 0;
	}
	memset(probe, 0, sizeof(*probe));
	probe->magic = htole32(PROBE_MAGIC);
	probe->rail = flow->rail;
	probe->from = htole32(me);
	probe->to = htole32(flow->peer);
	probe->session = htole64(session);
	probe->to_session = htole64(flow->candidate ? flow->candidate : flow->session);
	probe->seq = htole32(seq);
	probe->duplicates = htole32(flow->counters.duplicates);
	probe->reordered = htole32(flow->counters.reordered);
	for (unsigned i = 0; i < PROBE_SIZES; i++)
		probe->arrived[i] = htole32(flow->counters.arrived[i]);
	if (!flow->owner) {
		put_records(probe->sent, flow->sent, flow->sent_log, flow->sent_logged, back);
		put_records(
			probe->received, flow->received, flow->received_log, flow->received_logged, back
		);
	}
	sent = &flow->sent[seq % FLOW_RING];
	*sent = (struct stamp){ .seq = seq, .source = STAMP_NONE, .node_ns = user_ns };
	flow->counters.sent[probe_size_class(seq)]++;
}

void flow_sent_stamp(struct flow *flow, const struct stamp *stamp)
{
	struct stamp *sent = &flow->sent[stamp->seq % FLOW_RING];

	if (sent->seq != stamp->seq || sent->source >= stamp->source || sent->paired)
		return; /* long ago, stamped nearer to the wire already, or used */
	if (sent->source == STAMP_NONE)
		flow->sent_log[flow->sent_logged++ % FLOW_RING] = stamp->seq;
	*sent = *stamp;
}

static unsigned expected_between(uint32_t after, uint32_t until, unsigned size_class)
{
	unsigned count = 0;

	if (until - after > 4 * FLOW_RING)
		after = until - 4 * FLOW_RING; /* a long silence: no need to count it probe by probe */
	for (uint32_t seq = after + 1; seq != until + 1; seq++)
		count += probe_size_class(seq) == size_class;
	return count;
}

/* Replay protection (the window of RFC 6479) and the counters of what arrives. */
static bool fresh(struct flow *flow, uint32_t seq)
{
	struct flow_counters *count = &flow->counters;
	uint32_t ahead = seq - flow->highest;

	if (seq < 2)
		return false;
	if (flow->highest == 0 || (int32_t)ahead > 0) {
		uint32_t after = flow->highest ? flow->highest : seq - 1;

		for (unsigned i = 0; i < PROBE_SIZES; i++)
			count->expected[i] += expected_between(after, seq, i);
		flow->seen = flow->highest == 0 || ahead >= WINDOW ? 1 : flow->seen << ahead | 1;
		flow->highest = seq;
		return true;
	}
	ahead = flow->highest - seq;
	if (ahead >= WINDOW)
		return false;
	if (flow->seen >> ahead & 1) {
		count->duplicates++;
		return false;
	}
	flow->seen |= 1ULL << ahead;
	count->reordered++;
	return true;
}

static void make_sample(
	struct flow *flow,
	struct stamp *sent,
	struct stamp *received,
	bool inbound,
	sample_sink sink,
	void *context
)
{
	unsigned error_ns = sent->error_ns + received->error_ns;
	struct sample sample = {
		.peer = flow->peer,
		.seq = sent->seq,
		.rail = flow->rail,
		.inbound = inbound,
		.size_class = (uint8_t)probe_size_class(sent->seq),
		.sent_source = sent->source,
		.received_source = received->source,
		.error_ns = (uint16_t)(error_ns < UINT16_MAX ? error_ns : UINT16_MAX),
		.sent_ns = sent->node_ns,
		.received_ns = received->node_ns,
	};

	sink(context, &sample);
}

static void join_record(
	struct flow *flow,
	const struct probe_record *record,
	bool inbound,
	sample_sink sink,
	void *context
)
{
	struct stamp theirs = {
		.seq = le32toh(record->seq),
		.source = record->source,
		.error_ns = le16toh(record->error_ns),
		.node_ns = (int64_t)le64toh((uint64_t)record->node_ns),
	};
	struct stamp *ring = inbound ? flow->received : flow->sent;
	struct stamp *ours = &ring[theirs.seq % FLOW_RING];

	if (theirs.source == STAMP_NONE || ours->seq != theirs.seq || ours->paired
	    || ours->source == STAMP_NONE)
		return;
	ours->paired = true;
	if (inbound)
		make_sample(flow, &theirs, ours, true, sink, context);
	else
		make_sample(flow, ours, &theirs, false, sink, context);
}

bool flow_take_probe(
	struct flow *flow,
	const struct probe *probe,
	uint64_t own_session,
	const struct stamp *stamp,
	sample_sink sink,
	void *context
)
{
	uint64_t session = le64toh(probe->session);
	uint32_t seq = le32toh(probe->seq);
	bool proven = le64toh(probe->to_session) == own_session;

	if (session != flow->session) {
		/* A new session counts once its probes name ours: an old copy cannot know it. */
		if (!proven) {
			flow->candidate = session;
			return false;
		}
		flow_reset_peer(flow, session);
	}
	if (!fresh(flow, seq)) {
		flow->counters.refused++;
		return false;
	}
	flow->candidate = 0;
	flow->counters.heard = 1;
	flow->counters.arrived[probe_size_class(seq)]++;
	flow->received[seq % FLOW_RING] = *stamp;
	flow->received[seq % FLOW_RING].seq = seq;
	flow->received_log[flow->received_logged++ % FLOW_RING] = seq;
	for (unsigned i = 0; i < PROBE_SIZES; i++)
		flow->counters.peer_arrived[i] = le32toh(probe->arrived[i]);
	flow->counters.peer_duplicates = le32toh(probe->duplicates);
	flow->counters.peer_reordered = le32toh(probe->reordered);
	if (!flow->owner || !proven)
		return true;
	for (unsigned i = 0; i < PROBE_RECORDS; i++) {
		join_record(flow, &probe->sent[i], true, sink, context);
		join_record(flow, &probe->received[i], false, sink, context);
	}
	return true;
}
