/* The life of one worker: set up, turn until told to stop, leave nothing behind. */
#include "daemon.h"

#include <errno.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <time.h>
#include <unistd.h>

#define TICK_IDLE_NS (20 * MS) /* probes to peers without traffic go five times as rarely */
#define TICK_DOUBT_NS (MS / 4)
#define TICK_HURRY_NS (MS / 2)
#define LATE_NS (3 * MS)
#define OFF_LINGER_NS (30 * S) /* time for every other node to hear that we cannot */

static volatile sig_atomic_t stop;

static void on_stop(int signal)
{
	(void)signal;
	stop = 1;
}

static void catch_signals(sigset_t *waiting)
{
	struct sigaction action = {.sa_handler = on_stop};
	sigset_t blocked;

	sigemptyset(&blocked);
	sigaddset(&blocked, SIGTERM);
	sigaddset(&blocked, SIGINT);
	sigprocmask(SIG_BLOCK, &blocked, waiting);
	sigdelset(waiting, SIGTERM);
	sigdelset(waiting, SIGINT);
	sigaction(SIGTERM, &action, NULL);
	sigaction(SIGINT, &action, NULL);
}

static void load_group(unsigned number, unsigned rail, uint8_t members, void *arg)
{
	struct daemon *d = arg;

	if (number < d->conf.nodes)
		d->peer[number].loaded[rail] = members;
}

static bool init_rails(struct daemon *d, char *problem, size_t size)
{
	for (unsigned i = 0; i < d->conf.rails; i++) {
		struct rail *rail = &d->rail[i];

		rail->conf = &d->conf.rail[i];
		rail->ifindex = d->mover.ifindex[i] = if_nametoindex(rail->conf->name);
		rail->carrier = true;
		rail->hears = 255;
		if (!rail->ifindex) {
			snprintf(problem, size, "rail %s: no such interface", rail->conf->name);
			return false;
		}
	}
	return true;
}

static bool init_peers(struct daemon *d)
{
	d->peer = calloc(d->conf.nodes, sizeof(*d->peer));
	for (unsigned i = 0; d->peer && i < d->conf.nodes; i++) {
		struct peer *peer = &d->peer[i];

		peer->number = peer->route.number = i;
		peer->node = &d->conf.node[i];
		peer->hello_wait_ns = 20 * MS;
		pair_init(&peer->pair, d->conf.rails, d->now_ns);
		peer->pair.hold_ns = d->conf.hold_ms * MS;
		peer->pair.hold_max_ns = d->conf.hold_max_ms * MS;
	}
	return d->peer != NULL;
}

static bool env_is_there(const struct daemon *d)
{
	char path[CONF_PATH + 8];

	snprintf(path, sizeof(path), "%s/env", d->conf.dir);
	return access(path, F_OK) == 0;
}

/* What all later steps need. Without it there is nothing that could be told to the others. */
static bool set_up(struct daemon *d, char *problem, size_t size)
{
	char path[CONF_PATH + 8];
	int error;

	d->now_ns = d->started_ns = mono_ns();
	d->mover.rails = d->conf.rails;
	d->mover.rto_min_ms = d->conf.rto_min_ms;
	memcpy(d->mover.congestion, d->conf.congestion, sizeof(d->mover.congestion));
	snprintf(path, sizeof(path), "%s/events", d->conf.dir);
	if (!event_open(&d->events, path)) {
		snprintf(problem, size, "%.100s: %s", path, strerror(errno));
		return false;
	}
	if (getrandom(&d->session, sizeof(d->session), 0) != sizeof(d->session) ||
	    !init_rails(d, problem, size) || !init_peers(d))
		return false;
	byhand_load(d);
	error = rtnl_open(&d->mover.rtnl, NETLINK_ROUTE, 0);
	if (!error)
		error = rtnl_open(&d->diag, NETLINK_SOCK_DIAG, 0);
	if (error) {
		snprintf(problem, size, "netlink: %s", strerror(-error));
		return false;
	}
	return sockets_open(d, problem, size);
}

static void start(struct daemon *d, bool adopted)
{
	char why[160];

	if (adopted)
		mover_load(&d->mover, load_group, d);
	if (adopted && env_is_there(d))
		d->phase = PHASE_READY;
	for (char *at = d->conf.off; *at; at++)
		if (*at == '_')
			*at = ' '; /* a word of the configuration, a sentence for people */
	event_write(&d->events, "begin", ";adopted=%d;port=%u;scheduler=%s", adopted, d->port,
		    d->realtime ? "fifo" : "other");
	if (d->conf.off[0])
		hello_off(d, d->conf.self, d->conf.off);
	else if (!links_open(d, why, sizeof(why)) || !shared_setup(d, why, sizeof(why)))
		hello_off(d, d->conf.self, why);
	if (!d->conf.fabric && d->phase != PHASE_OFF) {
		/* The rails' own addresses work with or without us: nothing to agree on. */
		d->phase = PHASE_READY;
		event_write(&d->events, "ready", ";after_ns=0");
	}
	if (!control_open(d))
		event_write(&d->events, "trouble", ";what=control;why=%s", strerror(errno));
	if (!waiting_open(d))
		event_write(&d->events, "trouble", ";what=waiting;why=%s", strerror(errno));
	d->state_changed = true;
}

/* In step with the first of the nodes before us that we talk to. */
static uint64_t in_step_ns(const struct daemon *d, uint64_t tick)
{
	for (unsigned i = 0; i < d->conf.self; i++)
		if (d->peer[i].known && d->now_ns < d->peer[i].active_until_ns)
			return pair_step_ns(&d->peer[i].pair, d->now_ns, tick);
	return tick;
}

static uint64_t tick_ns(const struct daemon *d)
{
	uint64_t tick = d->active ? in_step_ns(d, d->conf.interval_us * 1000ull) : TICK_IDLE_NS;

	for (unsigned i = 0; i < d->conf.nodes && tick > TICK_DOUBT_NS; i++) {
		const struct peer *peer = &d->peer[i];
		uint64_t back = peer->known ? pair_back_ns(&peer->pair) : 0;

		if (back > d->now_ns && back - d->now_ns < tick)
			tick = back - d->now_ns;
		if (peer->known && pair_in_doubt(&peer->pair, d->now_ns) &&
		    probing_doubt_ns(d, peer) / 2 < tick)
			tick = probing_doubt_ns(d, peer) / 2;
	}
	if (d->now_ns < d->hurry_until_ns && tick > TICK_HURRY_NS)
		tick = TICK_HURRY_NS;
	return tick < TICK_IDLE_NS ? tick : TICK_IDLE_NS;
}

static void turn(struct daemon *d)
{
	probing_receive(d);
	if (d->phase != PHASE_OFF) {
		for (unsigned i = 0; i < d->conf.nodes; i++)
			moving_look(d, &d->peer[i]);
		neighbours_turn(d);
		probing_turn(d);
		moving_rules(d);
		cause_find(d);
		pacing_turn(d);
		traffic_poll(d);
		traffic_turn(d);
	}
	hello_turn(d);
	if (d->state_changed)
		state_write(d);
}

bool loop_job_is_over(const struct conf *conf)
{
	return conf->watch[0] && access(conf->watch, F_OK) != 0;
}

/* A look once a second. */
static bool is_over(struct daemon *d)
{
	if (d->now_ns < d->next_second_ns)
		return false;
	d->next_second_ns = d->now_ns + S;
	return loop_job_is_over(&d->conf);
}

void loop_stop(void)
{
	stop = 1;
}

int loop_run(struct daemon *d)
{
	char problem[160] = "";
	uint64_t due_ns;
	sigset_t waiting;
	bool adopted = d->phase == PHASE_HAVE; /* set by main when the lease was there before */

	d->phase = PHASE_STARTING;
	catch_signals(&waiting);
	if (!set_up(d, problem, sizeof(problem))) {
		fprintf(stderr, "fabric: paths: %s\n", problem);
		snprintf(d->why, sizeof(d->why), "%s", problem);
		d->phase = PHASE_OFF;
		state_write(d);
		return 71;
	}
	start(d, adopted);
	due_ns = d->started_ns;
	while (!stop) {
		waiting_until(d, due_ns, &waiting);
		d->now_ns = mono_ns();
		d->late = d->now_ns > due_ns + LATE_NS;
		turn(d);
		if (is_over(d) ||
		    (d->phase == PHASE_OFF && d->now_ns - d->started_ns > OFF_LINGER_NS))
			break;
		/* A link event ends the wait early: then the tick that was due still is. */
		if (d->now_ns >= due_ns)
			due_ns = d->now_ns + tick_ns(d);
		else if (tick_ns(d) < due_ns - d->now_ns)
			due_ns = d->now_ns + tick_ns(d);
	}
	event_write(&d->events, "end", ";dropped=%llu", (unsigned long long)d->events.dropped);
	return d->port_anew ? LOOP_AGAIN : 0;
}
