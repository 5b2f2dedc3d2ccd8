#include "steer.h"

#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <linux/capability.h>
#include <math.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "page.h"

#define STATE_BYTES 2048
#define STEADY_NS 1000	/* closer than this it is said to be steady */
#define UNSURE_NS 1000000 /* job time that is less sure is not followed */
#define LOOK_TURNS 10	/* between looks for programs that steer it, too */
#define FREQ_SAME 2	/* of what was set and what is read, in 2^-16 ppm */

static volatile sig_atomic_t ended;

struct held {
	struct clock clock;
	struct lease lease;
	struct servo servo;
	const char *state;
};

static struct {
	struct conf conf;
	struct held held[STEER_CLOCKS];
	int count, state_fd;
	unsigned turns;
	struct page *page;
} me = { .state_fd = -1 };

static void on_end(int number)
{
	(void)number;
	ended = 1;
}

/* --- What is told ------------------------------------------------------------------------------ */

/* fabricctl/clock/steering.py reads it. Always as long, in one write: readers see it whole. */
static void tell(const char *state, const char *why)
{
	char text[STATE_BYTES + 1];
	int size = snprintf(
		text, sizeof(text), "v=1\njob=%lu\nclock=%s\nstate=%s\nwhy=%s\npid=%d\n", me.conf.job,
		me.conf.system ? "system" : "ptp", state, why, (int)getpid()
	);

	for (int i = 0; i < me.count; i++) {
		const struct servo *servo = &me.held[i].servo;

		size += snprintf(
			text + size, sizeof(text) - (size_t)size,
			"name%d=%s\noff_ns%d=%.0f\nfreq_ppb%d=%.3f\nfound_ppb%d=%.3f\n", i,
			me.held[i].clock.name, i, servo->off_ns, i, servo->applied_ppb, i,
			servo->found_ppb
		);
	}
	size += snprintf(text + size, sizeof(text) - (size_t)size, "pad=");
	memset(text + size, '.', (size_t)(STATE_BYTES - size));
	text[STATE_BYTES - 1] = '\n';
	if (me.state_fd >= 0 && pwrite(me.state_fd, text, STATE_BYTES, 0) != STATE_BYTES)
		fprintf(stderr, "fabric: steer: state: %s\n", strerror(errno));
}

static int refuse(const char *why)
{
	fprintf(stderr, "fabric: steer: refused: %s\n", why);
	tell("refused", why);
	return STEER_REFUSED;
}

/* --- What it is told --------------------------------------------------------------------------- */

static bool take(struct conf *conf, const char *key, const char *value)
{
	static const struct {
		const char *key;
		size_t at;
	} paths[] = {
		{ "page", offsetof(struct conf, page) },   { "leases", offsetof(struct conf, leases) },
		{ "state", offsetof(struct conf, state) }, { "watch", offsetof(struct conf, watch) },
		{ "lab", offsetof(struct conf, lab) },	   { "proc", offsetof(struct conf, proc) },
		{ "cgroups", offsetof(struct conf, cgroups) },
	};

	for (size_t i = 0; i < sizeof(paths) / sizeof(*paths); i++)
		if (!strcmp(key, paths[i].key))
			return snprintf((char *)conf + paths[i].at, STEER_PATH, "%s", value) < STEER_PATH;
	if (!strcmp(key, "rail"))
		return conf->rails < STEER_CLOCKS
		       && snprintf(conf->rail[conf->rails++], 16, "%s", value) < 16;
	if (!strcmp(key, "clock")) {
		conf->system = !strcmp(value, "system");
		return conf->system || !strcmp(value, "ptp");
	}
	if (!strcmp(key, "job"))
		return (conf->job = strtoul(value, NULL, 10)) > 0;
	if (!strcmp(key, "uid"))
		return (conf->uid = (uid_t)strtoul(value, NULL, 10)) > 0;
	if (!strcmp(key, "gid"))
		return (conf->gid = (gid_t)strtoul(value, NULL, 10)) > 0;
	if (!strcmp(key, "period_ms"))
		return (conf->period_ms = (unsigned)strtoul(value, NULL, 10)) > 0;
	return false;
}

static int read_conf(struct conf *conf)
{
	char line[STEER_PATH + 32];

	conf->period_ms = 1000;
	snprintf(conf->proc, sizeof(conf->proc), "/proc");
	snprintf(conf->cgroups, sizeof(conf->cgroups), "/sys/fs/cgroup");
	while (fgets(line, sizeof(line), stdin)) {
		char *rest = line, *key;

		line[strcspn(line, "\n")] = '\0';
		key = strsep(&rest, "=");
		if (!rest || !take(conf, key, rest)) {
			fprintf(stderr, "fabric: steer: configuration: %.60s\n", key);
			return -1;
		}
	}
	return conf->job && conf->page[0] && conf->leases[0] && conf->state[0] && conf->watch[0] ? 0 : -1;
}

/* --- Rights ------------------------------------------------------------------------------------ */

/* Another user, for good, with CAP_SYS_TIME where a real system clock is meant and nothing else. */
static int drop(const struct conf *conf)
{
	struct __user_cap_header_struct header = { .version = _LINUX_CAPABILITY_VERSION_3 };
	struct __user_cap_data_struct data[2] = { 0 };
	struct rlimit none = { 0, 0 };

	if (conf->system && !conf->lab[0])
		data[0].permitted = data[0].effective = 1u << CAP_SYS_TIME;
	if (setrlimit(RLIMIT_CORE, &none) || prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0))
		return -1;
	if (!conf->uid)
		return geteuid() == 0 ? -1 : 0; /* never as root; a test is nobody to begin with */
	if (prctl(PR_SET_KEEPCAPS, 1, 0, 0, 0) || setgroups(0, NULL)
	    || setresgid(conf->gid, conf->gid, conf->gid)
	    || setresuid(conf->uid, conf->uid, conf->uid))
		return -1;
	return (int)syscall(SYS_capset, &header, data);
}

/* --- Following --------------------------------------------------------------------------------- */

static bool find_page(void)
{
	struct stat about;
	int fd;

	if (me.page)
		return true;
	fd = open(me.conf.page, O_RDONLY | O_CLOEXEC);
	if (fd < 0)
		return false;
	if (!fstat(fd, &about) && about.st_size >= (off_t)sizeof(*me.page)) {
		void *page = mmap(NULL, sizeof(*me.page), PROT_READ, MAP_SHARED, fd, 0);

		if (page != MAP_FAILED && ((struct page *)page)->magic == PAGE_MAGIC
		    && ((struct page *)page)->version == PAGE_VERSION)
			me.page = page;
		else if (page != MAP_FAILED)
			munmap(page, sizeof(*me.page));
	}
	close(fd);
	return me.page != NULL;
}

static int set(struct held *held, double ppb)
{
	struct timex tx = { .modes = ADJ_FREQUENCY, .freq = freq_of(ppb) };

	held->lease.older = held->lease.ours;
	held->lease.ours = tx.freq;
	if (lease_write(&held->lease) || clock_adjust(&held->clock, &tx) < 0)
		return -1;
	return 0;
}

/* One clock, one reading. STEER_LEFT or STEER_REFUSED with the reason when it cannot go on. */
static int follow(struct held *held, char why[STEER_WHY])
{
	struct timex tx = { 0 };
	struct fabric_clock_reading job;
	int64_t raw_ns, shown_ns;
	double off_ns, ppb = held->servo.applied_ppb;

	if (clock_adjust(&held->clock, &tx) < 0 || clock_read(&held->clock, &raw_ns, &shown_ns)) {
		snprintf(why, STEER_WHY, "the %s clock: %s", held->clock.name, strerror(errno));
		return STEER_REFUSED;
	}
	if (labs(tx.freq - held->lease.ours) > FREQ_SAME) {
		snprintf(why, STEER_WHY, "somebody else steers the %s clock now: it is left to them",
			 held->clock.name);
		held->lease.left = true;
		lease_write(&held->lease);
		return STEER_LEFT;
	}
	/* One that has just come has not set it yet: it gets it as it was. */
	if (clock_owned(&held->clock, &tx, why)
	    || (me.turns % LOOK_TURNS == 0 && me.conf.system
		&& owners_find(&held->clock, me.conf.proc, me.conf.cgroups, why)))
		return STEER_LEFT;
	if (!find_page() || page_read(me.page, raw_ns, &job)) {
		held->state = "waiting";
		return 0;
	}
	off_ns = (double)(shown_ns - job.time_ns);
	if (job.likely_ns > UNSURE_NS || job.status != FABRIC_CLOCK_SYNCHRONISED) {
		held->state = "holding";
		ppb = servo_hold(&held->servo);
	} else if (fabs(off_ns) > STEER_FAR_NS) {
		snprintf(why, STEER_WHY, "the %s clock is %.3g s off job time, which would take %.0f "
					 "minutes to slew away: set it first", held->clock.name,
			 off_ns * 1e-9, fabs(off_ns) / STEER_SLEW_PPB / 60);
		return STEER_REFUSED;
	} else {
		ppb = servo_turn(&held->servo, raw_ns, off_ns, me.conf.period_ms * 1e-3);
		held->state = fabs(off_ns) < STEADY_NS && held->servo.readings > 4 ? "steady"
										   : "slewing";
	}
	if (freq_of(ppb) != held->lease.ours && set(held, ppb)) {
		snprintf(why, STEER_WHY, "the %s clock cannot be set: %s", held->clock.name,
			 strerror(errno));
		return STEER_REFUSED;
	}
	return 0;
}

/* The state of all of them: that of the one which has farthest to go. */
static const char *together(void)
{
	static const char *const order[] = { "waiting", "holding", "slewing" };

	for (size_t i = 0; i < sizeof(order) / sizeof(*order); i++)
		for (int j = 0; j < me.count; j++)
			if (!strcmp(me.held[j].state, order[i]))
				return order[i];
	return "steady";
}

static void wait_until(struct timespec *next)
{
	next->tv_nsec += (long)(me.conf.period_ms % 1000) * 1000000;
	next->tv_sec += me.conf.period_ms / 1000 + next->tv_nsec / 1000000000;
	next->tv_nsec %= 1000000000;
	clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, next, NULL);
}

static int steer(char why[STEER_WHY])
{
	struct timespec next;
	int status = 0;

	clock_gettime(CLOCK_MONOTONIC, &next);
	while (!ended && !status && access(me.conf.watch, F_OK) == 0) {
		me.turns++;
		for (int i = 0; i < me.count && !status; i++)
			status = follow(&me.held[i], why);
		if (!status) {
			tell(together(), "");
			wait_until(&next);
		}
	}
	for (int i = 0; i < me.count; i++)
		lease_restore(&me.held[i].lease, &me.held[i].clock);
	return status;
}

static int begin(char why[STEER_WHY])
{
	struct clock clocks[STEER_CLOCKS];
	int count;

	/* Before any right goes: files of root's, and the clocks. */
	me.state_fd = open(me.conf.state, O_WRONLY | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0644);
	count = clocks_open(&me.conf, clocks, why);
	for (int i = 0; i < count; i++) {
		struct held *held = &me.held[i];
		struct timex tx = { 0 };
		bool adopted;

		held->clock = clocks[i];
		held->state = "waiting";
		if (lease_take(&held->lease, &me.conf, &held->clock, &adopted, why))
			return -1;
		me.count++;
		if (clock_adjust(&held->clock, &tx) < 0 || clock_owned(&held->clock, &tx, why)
		    || owners_find(&held->clock, me.conf.proc, me.conf.cgroups, why))
			return -1;
		servo_begin(&held->servo, ppb_of(held->lease.found), held->clock.most_ppb);
		held->servo.applied_ppb = ppb_of(tx.freq); /* of one that died before us */
	}
	if (count >= 0 && drop(&me.conf)) {
		snprintf(why, STEER_WHY, "rights cannot be dropped: %s", strerror(errno));
		return -1;
	}
	return count;
}

static int run(void)
{
	struct sigaction action = { .sa_handler = on_end };
	char why[STEER_WHY] = "";
	int status;

	if (read_conf(&me.conf))
		return 64; /* EX_USAGE */
	sigaction(SIGTERM, &action, NULL); /* interrupts the sleep */
	sigaction(SIGINT, &action, NULL);
	status = begin(why) < 0 ? STEER_REFUSED : steer(why);
	if (status == STEER_REFUSED) {
		for (int i = 0; i < me.count; i++)
			lease_restore(&me.held[i].lease, &me.held[i].clock);
		return refuse(why);
	}
	if (status)
		fprintf(stderr, "fabric: steer: %s\n", why);
	tell(status == STEER_LEFT ? "left" : "ended", why);
	return status;
}

int main(int ac, char *av[])
{
	if (ac == 2 && !strcmp(av[1], "run"))
		return run();
	if (ac >= 4 && !strcmp(av[1], "restore"))
		return lease_clean(av[2], strcmp(av[3], "-") ? av[3] : "", av + 4);
	fprintf(stderr, "usage: fabric-steer run <CONFIGURATION\n"
			"       fabric-steer restore LEASES LAB|- [JOB_TO_KEEP...]\n");
	return 64;
}
