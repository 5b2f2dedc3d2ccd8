#include "engine.h"

#include <arpa/inet.h>
#include <endian.h>
#include <errno.h>
#include <netdb.h>
#include <poll.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "rails.h"
#include "siphash.h"

#define STACK_BYTES (256 * 1024)
#define FIRST_PERIOD_NS 20000000
#define FIRST_ANCHORS 16
#define BATCHES_MAX 16 /* a tick's many times over: who floods the port keeps nobody from the lock */
#define ANCHOR_SLACK_NS 100 /* wider than twice the narrowest by this: somebody came between */

int engine_init(struct engine *engine)
{
	engine->wake = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	if (engine->wake < 0)
		return -errno;
	engine->samples = calloc(ENGINE_SAMPLES, sizeof(*engine->samples));
	if (!engine->samples)
		return -ENOMEM;
	engine->out = calloc(RAIL_BATCH, sizeof(*engine->out));
	if (!engine->out)
		return -ENOMEM;
	engine->period_ns = FIRST_PERIOD_NS;
	engine->now = anchor_read();
	for (int i = 0; i < FIRST_ANCHORS; i++) {
		struct anchor again = anchor_read();

		if (again.width_ns < engine->now.width_ns)
			engine->now = again;
	}
	engine->before = engine->now;
	engine->narrowest_ns = engine->now.width_ns;
	engine->random = engine->session | 1;
	return -pthread_mutex_init(&engine->lock, NULL);
}

/* Ports of one card share a clock: its place among the engine's. */
static int add_phc(struct engine *engine, int fd)
{
	for (unsigned i = 0; i < engine->phcs; i++)
		if (engine->phc[i].fd == fd)
			return (int)i;
	engine->phc[engine->phcs] = (struct phc){ .fd = fd };
	return (int)engine->phcs++;
}

int engine_add_rail(
	struct engine *engine, const char *address, uint16_t port, const char *interface, int phc_fd
)
{
	int result, phc;

	if (engine->rails == ENGINE_RAILS)
		return -ENOSPC;
	phc = phc_fd < 0 ? -1 : add_phc(engine, phc_fd);
	result = rail_open(&engine->rail[engine->rails], address, port, interface, phc);
	return result < 0 ? result : (int)engine->rails++;
}

static uint64_t whose(unsigned rail, uint32_t peer)
{
	return (uint64_t)rail << 32 | peer;
}

static struct flow *find(struct engine *engine, unsigned rail, uint32_t peer)
{
	uint64_t wanted = whose(rail, peer);

	for (unsigned i = 0; i < engine->flows; i++)
		if (engine->whose[i] == wanted)
			return engine->flow[i];
	return NULL;
}

int engine_add_flow(
	struct engine *engine, unsigned rail, uint32_t peer, const char *address, uint16_t port,
	bool owner
)
{
	struct flow *flow = find(engine, rail, peer);
	struct sockaddr_storage to;
	socklen_t size = 0;

	if (rail >= engine->rails)
		return -EINVAL;
	if (!rail_address(address, port, &to, &size))
		return -EINVAL;
	if (to.ss_family != engine->rail[rail].family)
		return -EAFNOSUPPORT;
	if (!flow) {
		if (engine->flows == ENGINE_FLOWS)
			return -ENOSPC;
		flow = calloc(1, sizeof(*flow));
		if (!flow)
			return -ENOMEM;
		engine->whose[engine->flows] = whose(rail, peer);
		engine->flow[engine->flows++] = flow;
	}
	flow->used = true;
	flow->rail = (uint8_t)rail;
	flow->peer = peer;
	flow->owner = owner;
	flow->address = to;
	flow->address_size = size;
	flow->counters.peer = peer;
	flow->counters.rail = (uint8_t)rail;
	return 0;
}

void engine_drop_flows(struct engine *engine)
{
	unsigned kept = 0;

	for (unsigned i = 0; i < engine->flows; i++) {
		if (engine->flow[i]->used) {
			engine->whose[kept] = engine->whose[i];
			engine->flow[kept++] = engine->flow[i];
		} else {
			free(engine->flow[i]);
		}
	}
	engine->flows = kept;
}

static void keep_sample(void *context, const struct sample *sample)
{
	struct engine *engine = context;

	if (engine->sample_count == ENGINE_SAMPLES)
		engine->samples_lost++;
	else
		engine->samples[engine->sample_count++] = *sample;
}

/* xorshift64* (Vigna, 2014): scatters ticks and the order of peers, nothing else. */
static uint64_t next_random(struct engine *engine)
{
	uint64_t x = engine->random;

	x ^= x >> 12;
	x ^= x << 25;
	x ^= x >> 27;
	engine->random = x;
	return x * 0x2545F4914F6CDD1DULL;
}

/* A kernel stamp as node time; false when it cannot be told. */
static bool node_time(struct engine *engine, int64_t real_ns, struct stamp *stamp)
{
	if (!real_ns
	    || !anchor_convert(&engine->before, &engine->now, &engine->virtual, real_ns, &stamp->node_ns))
		return false;
	stamp->node_ns -= engine->base_ns;
	return true;
}

/* The same of a NIC's stamp, when there is one. */
static bool nic_time(struct engine *engine, const struct rail *rail, int64_t phc_ns, struct stamp *stamp)
{
	int64_t raw, error, mono;

	if (!phc_ns || rail->phc < 0 || !phc_convert(&engine->phc[rail->phc], phc_ns, &raw, &error))
		return false;
	mono = engine->now.mono_ns + (raw - engine->now.raw_ns);
	stamp->node_ns = raw + virtual_error_ns(&engine->virtual, mono) - engine->base_ns;
	stamp->source = STAMP_HARDWARE;
	stamp->error_ns = (uint16_t)error;
	return true;
}

static void take_one_sent(struct engine *engine, struct rail *rail, const struct rail_sent *sent)
{
	struct flow *flow = find(engine, (unsigned)(rail - engine->rail), sent->to);
	struct stamp kernel = { .seq = sent->seq, .source = (uint8_t)rail->transmit }, nic = kernel;

	if (!flow)
		return;
	if (nic_time(engine, rail, sent->phc_ns, &nic)) {
		rail->lately.sent_hardware++;
		if (rail->hardware)
			flow_sent_stamp(flow, &nic);
	}
	if (node_time(engine, sent->real_ns, &kernel))
		flow_sent_stamp(flow, &kernel);
}

static void take_sent(struct engine *engine, unsigned rail)
{
	struct rail_sent sent[RAIL_BATCH];
	int count = RAIL_BATCH;

	for (int batch = 0; batch < BATCHES_MAX && count == RAIL_BATCH; batch++) {
		count = rail_read_sent(&engine->rail[rail], engine->session, sent);
		for (int i = 0; i < count; i++)
			take_one_sent(engine, &engine->rail[rail], &sent[i]);
	}
}

static bool tag_is_right(struct engine *engine, const struct probe *probe)
{
	uint64_t tag = clock_siphash(
		engine->key, (const uint8_t *)probe, PROBE_BYTES - sizeof(probe->tag)
	);

	return le64toh(probe->tag) == tag;
}

static void
take_one_arrived(struct engine *engine, struct rail *rail, const struct rail_arrived *arrived)
{
	const struct probe *probe = &arrived->probe;
	unsigned index = (unsigned)(rail - engine->rail);
	struct flow *flow = find(engine, index, le32toh(probe->from));
	struct stamp kernel = { .source = STAMP_SOFTWARE }, nic = kernel;
	bool stamped;

	if (!flow || le32toh(probe->to) != engine->me || probe->rail != index)
		return;
	if (!tag_is_right(engine, probe)) {
		engine->tagless++;
		return;
	}
	stamped = nic_time(engine, rail, arrived->phc_ns, &nic);
	rail->lately.arrived++;
	rail->lately.arrived_hardware += stamped;
	if (stamped && rail->hardware)
		flow_take_probe(flow, probe, engine->session, &nic, keep_sample, engine);
	else if (node_time(engine, arrived->real_ns, &kernel))
		flow_take_probe(flow, probe, engine->session, &kernel, keep_sample, engine);
}

static void take_arrived(struct engine *engine, unsigned rail)
{
	struct rail_arrived arrived[RAIL_BATCH];
	int count = RAIL_BATCH;

	for (int batch = 0; batch < BATCHES_MAX && count == RAIL_BATCH; batch++) {
		count = rail_read_arrived(&engine->rail[rail], arrived);
		for (int i = 0; i < count; i++)
			take_one_arrived(engine, &engine->rail[rail], &arrived[i]);
	}
}

static void
make_pair(struct engine *engine, struct flow *flow, int64_t user, struct rail_out out[2])
{
	struct rail *rail = &engine->rail[flow->rail];

	for (int i = 0; i < 2; i++) {
		struct probe *probe = &out[i].probe;
		unsigned size_class;

		flow_next_probe(flow, engine->me, engine->session, user, probe);
		probe->tag = htole64(clock_siphash(
			engine->key, (const uint8_t *)probe, PROBE_BYTES - sizeof(probe->tag)
		));
		size_class = probe_size_class(le32toh(probe->seq));
		out[i].bytes = rail_probe_bytes(rail, size_class);
		/* The first of a small pair only warms the way for the second. */
		out[i].stamped = i == 1 || size_class > 0;
		out[i].to = (struct sockaddr *)&flow->address;
		out[i].to_size = flow->address_size;
		if (rail->transmit == STAMP_USER)
			flow_sent_stamp(
				flow, &(struct stamp){ .seq = le32toh(probe->seq), .source = STAMP_USER, .node_ns = user }
			);
	}
}

/* All pairs of a rail, in as few system calls as hold them. */
static void send_rail(struct engine *engine, unsigned rail)
{
	struct rail_out *out = engine->out;
	int64_t user = raw_now_ns() - engine->base_ns;
	unsigned count = 0;

	if (engine->virtual.used)
		user += virtual_error_ns(&engine->virtual, mono_now_ns());
	for (unsigned i = 0; i < engine->flows; i++) {
		if (engine->flow[i]->rail != rail)
			continue;
		make_pair(engine, engine->flow[i], user, out + count);
		count += 2;
		if (count == RAIL_BATCH) {
			rail_send(&engine->rail[rail], out, count);
			count = 0;
		}
	}
	rail_send(&engine->rail[rail], out, count);
}

static void send_all(struct engine *engine)
{
	/* In random order: who comes first in a tick meets colder caches. */
	for (unsigned i = engine->flows; i > 1; i--) {
		unsigned j = (unsigned)(next_random(engine) % i);
		struct flow *flow = engine->flow[j];
		uint64_t of = engine->whose[j];

		engine->flow[j] = engine->flow[i - 1];
		engine->whose[j] = engine->whose[i - 1];
		engine->flow[i - 1] = flow;
		engine->whose[i - 1] = of;
	}
	for (unsigned i = 0; i < engine->rails; i++)
		send_rail(engine, i);
}

/* A new anchor, if it is narrow. One that was read while the thread was pushed aside is off by as
 * long as that took, and so would all stamps be that are converted with it. */
static bool take_anchor(struct engine *engine)
{
	struct anchor now = anchor_read();

	if (!engine->narrowest_ns || now.width_ns < engine->narrowest_ns)
		engine->narrowest_ns = now.width_ns;
	if (now.width_ns > 2 * engine->narrowest_ns + ANCHOR_SLACK_NS) {
		engine->narrowest_ns += 1 + engine->narrowest_ns / 64; /* it may have become slower */
		return false;
	}
	engine->before = engine->now;
	engine->now = now;
	return true;
}

static void read_all(struct engine *engine)
{
	for (unsigned i = 0; i < engine->phcs; i++)
		phc_read(&engine->phc[i], &engine->before, &engine->now);
	for (unsigned i = 0; i < engine->rails; i++) {
		take_sent(engine, i);
		take_arrived(engine, i);
		rail_choose_stamps(&engine->rail[i]);
	}
}

void engine_tick(struct engine *engine)
{
	/* What is not read now is kept by the kernel, with its stamps, for the next tick. */
	if (take_anchor(engine))
		read_all(engine);
	else
		engine->unread_ticks++;
	send_all(engine);
	engine->ticks++;
}

static void *run(void *context)
{
	struct engine *engine = context;
	int64_t due = mono_now_ns();

	while (!atomic_load(&engine->stop)) {
		struct pollfd wait = { .fd = engine->wake, .events = POLLIN };
		struct timespec time = { 0 };
		int64_t left;

		pthread_mutex_lock(&engine->lock);
		engine_tick(engine);
		/* Three quarters to five quarters of the period: never in step with a periodic load. */
		due += engine->period_ns * 3 / 4
		       + (int64_t)(next_random(engine) % (uint64_t)(engine->period_ns / 2));
		pthread_mutex_unlock(&engine->lock);
		left = due - mono_now_ns();
		if (left < 0) {
			due -= left; /* late: nothing is made up for */
			continue;
		}
		time.tv_sec = left / 1000000000;
		time.tv_nsec = left % 1000000000;
		ppoll(&wait, 1, &time, NULL);
	}
	return NULL;
}

int engine_start(struct engine *engine)
{
	pthread_attr_t attributes;
	sigset_t all, old;
	int result;

	sigfillset(&all);
	pthread_attr_init(&attributes);
	pthread_attr_setstacksize(&attributes, STACK_BYTES);
	pthread_sigmask(SIG_SETMASK, &all, &old); /* signals are for the agent's own thread */
	result = pthread_create(&engine->thread, &attributes, run, engine);
	pthread_sigmask(SIG_SETMASK, &old, NULL);
	pthread_attr_destroy(&attributes);
	engine->running = result == 0;
	return -result;
}

void engine_stop(struct engine *engine)
{
	uint64_t one = 1;

	if (!engine->running)
		return;
	atomic_store(&engine->stop, true);
	if (write(engine->wake, &one, sizeof(one)) < 0)
		return; /* it ends with the next tick all the same */
	pthread_join(engine->thread, NULL);
	engine->running = false;
}

void engine_free(struct engine *engine)
{
	engine_stop(engine);
	for (unsigned i = 0; i < engine->rails; i++)
		close(engine->rail[i].fd);
	for (unsigned i = 0; i < engine->flows; i++)
		free(engine->flow[i]);
	engine->rails = engine->flows = 0;
	if (engine->wake >= 0)
		close(engine->wake);
	engine->wake = -1;
	free(engine->out);
	free(engine->samples);
	engine->out = NULL;
	engine->samples = NULL;
}
