/* The probe engine: one thread that sends pairs of probes to every flow each tick, reads what the
 * kernel has stamped since the last one, and keeps the samples until they are taken.
 *
 * The thread is woken by its timer only: the kernel stamps packets as they come, so nothing is
 * lost by reading them late, and a tick costs the same for one packet as for forty. */
#ifndef FABRIC_CLOCK_ENGINE_H
#define FABRIC_CLOCK_ENGINE_H

#include <pthread.h>
#include <stdatomic.h>

#include "flow.h"
#include "phc.h"
#include "stamps.h"

#define ENGINE_RAILS 8
#define ENGINE_FLOWS 160 /* 10 peers and twice that after heavy healing, on 8 rails */
#define ENGINE_SAMPLES 32768 /* 4 s of 10 peers on 2 rails at 200 pairs/s */

struct rail {
	int fd;
	int family;
	uint16_t port;
	unsigned mtu_payload; /* of the largest probes */
	uint64_t asked, stamped; /* transmit stamps, since their source was chosen */
	enum stamp_source transmit; /* what the kernel is asked for */
	int phc; /* place of the NIC's clock in the engine; -1: its stamps are not asked for */
	bool hardware; /* the NIC stamps most of what leaves and arrives: its stamps are used */
	struct {
		unsigned sent, sent_hardware, arrived, arrived_hardware;
	} lately;
};

struct engine {
	uint32_t me;
	uint64_t session;
	uint8_t key[16];
	int64_t base_ns; /* taken off raw time: node time, what probes carry and samples hold */
	pthread_t thread;
	bool running;
	atomic_bool stop;
	int wake; /* eventfd that ends the wait */
	pthread_mutex_t lock; /* everything below */
	int64_t period_ns;
	unsigned rails;
	struct rail rail[ENGINE_RAILS];
	unsigned phcs;
	struct phc phc[ENGINE_RAILS];
	struct flow *flow[ENGINE_FLOWS];
	uint64_t whose[ENGINE_FLOWS]; /* rail and peer of each: searched for every probe */
	unsigned flows;
	struct virtual_clock virtual;
	struct anchor before, now;
	int64_t narrowest_ns; /* least width of an anchor seen, slowly forgotten */
	uint64_t random;
	struct rail_out *out; /* room for what a tick sends */
	struct sample *samples;
	unsigned sample_count;
	uint64_t samples_lost; /* nobody took them in time */
	uint64_t tagless, ticks, unread_ticks; /* unread: no anchor was narrow enough */
};

int engine_init(struct engine *engine);
/* Opens a rail's socket on a numeric address; returns its index or -errno. phc_fd: the open device of
 * its NIC's clock, which stays the caller's; -1: the NIC's stamps are not used. */
int engine_add_rail(
	struct engine *engine, const char *address, uint16_t port, const char *interface, int phc_fd
);
int engine_start(struct engine *engine);
void engine_stop(struct engine *engine);
void engine_free(struct engine *engine);
/* Keeps the flow when it is there already. 0 or -errno. */
int engine_add_flow(
	struct engine *engine, unsigned rail, uint32_t peer, const char *address, uint16_t port,
	bool owner
);
void engine_drop_flows(struct engine *engine);
void engine_tick(struct engine *engine);

#endif
