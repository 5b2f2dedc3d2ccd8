/* fabric-steer: makes a clock of this node follow the job's time, for --fabric-clock=ptp and =system.
 *
 * It changes frequencies, never steps; it knows the clock page and nothing of the network, and keeps
 * no right but CAP_SYS_TIME (for a NIC's clock not even that). docs/clock.md, "Steering". */
#ifndef FABRIC_STEER_H
#define FABRIC_STEER_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/timex.h>
#include <sys/types.h>
#include <time.h>

#include "stamps.h"

#define STEER_CLOCKS 8
#define STEER_PATH 256
#define STEER_WHY 200

/* Exit statuses, of sysexits.h: the node service starts again what ended with any other. */
#define STEER_REFUSED 69 /* the state says why */
#define STEER_LEFT 75	 /* somebody else steers the clock now: it is theirs, as it is */

/* --- main.c: what the node service says on standard input ------------------------------------ */

struct conf {
	unsigned long job;
	bool system; /* CLOCK_REALTIME, else the clocks of the rails' NICs */
	char page[STEER_PATH], leases[STEER_PATH], state[STEER_PATH], watch[STEER_PATH];
	char lab[STEER_PATH]; /* the lab's directory on this node; "": a real node */
	char proc[STEER_PATH], cgroups[STEER_PATH]; /* /proc, /sys/fs/cgroup; tests have others */
	char rail[STEER_CLOCKS][16];
	unsigned rails, period_ms;
	uid_t uid; /* whom it becomes */
	gid_t gid;
};

/* --- clocks.c: the clocks that can be steered -------------------------------------------------- */

struct clock {
	char name[16]; /* "system", "ptp0" */
	clockid_t id;
	int fd;	    /* of /dev/ptpN or of the lab's clock; -1 */
	bool lab;   /* a virtual clock: this machine's own is never touched in a lab */
	double most_ppb; /* that it can be set off by */
};

/* The clocks that the configuration means; -1 with the reason. */
int clocks_open(const struct conf *conf, struct clock clocks[STEER_CLOCKS], char why[STEER_WHY]);
/* One by its name, to put it back. */
int clock_open(struct clock *clock, const char *name, const char *lab, char why[STEER_WHY]);
/* clock_adjtime(2). */
int clock_adjust(const struct clock *clock, struct timex *tx);
/* What it shows at an instant of CLOCK_MONOTONIC_RAW; -1: it cannot be read. */
int clock_read(const struct clock *clock, int64_t *raw_ns, int64_t *shown_ns);
/* Whether the kernel says that somebody disciplines it; `tx` is what a read of it gave. */
bool clock_owned(const struct clock *clock, const struct timex *tx, char why[STEER_WHY]);

/* struct timex counts frequencies in 2^-16 ppm. */
static inline double ppb_of(long freq)
{
	return (double)freq * 1000 / 65536;
}

static inline long freq_of(double ppb)
{
	return (long)(ppb * 65.536 + (ppb < 0 ? -0.5 : 0.5));
}

/* --- owners.c: who else sets it ------------------------------------------------------------------ */

/* A process that does, and its name for the message. For a NIC's clock it takes root to see it. */
bool owners_find(
	const struct clock *clock, const char *proc, const char *cgroups, char why[STEER_WHY]
);

/* --- lease.c: who steers a clock, and what was there before ------------------------------------ */

struct lease {
	int fd;
	unsigned long job;
	char clock[16];
	long found;	  /* timex.freq before anybody touched it */
	long ours, older; /* the last two that were set: what the clock has if nobody else touched it */
	bool left;	  /* to somebody else: nothing is to be put back */
};

/* 0; -1 with the reason, which names the job that holds it. `adopted`: its job was here before. */
int lease_take(
	struct lease *lease, const struct conf *conf, const struct clock *clock, bool *adopted,
	char why[STEER_WHY]
);
int lease_write(const struct lease *lease);
/* Puts the clock back, unless somebody else changed it since. */
void lease_restore(struct lease *lease, const struct clock *clock);
/* What nobody holds any more is put back and removed, but for leases of the jobs in `keep`. */
int lease_clean(const char *leases, const char *lab, char *const keep[]);

/* --- servo.c ------------------------------------------------------------------------------------ */

struct servo {
	double found_ppb, most_ppb; /* it goes no further off the first than STEER_SLEW_PPB */
	double applied_ppb;	    /* since the last reading */
	double drift_ppb;	    /* how fast the clock runs by itself, against job time */
	int64_t raw_ns;		    /* the last reading */
	double off_ns;
	bool placed;		    /* raw_ns and off_ns hold the reading before */
	unsigned readings;	    /* that drift_ppb was learned from */
};

#define STEER_SLEW_PPB 200000.0 /* 200 ppm; the kernel takes 500 (adjtimex(2)) */
#define STEER_FAR_NS 1e9	/* further off than this it is refused: 83 minutes of slewing */
#define STEER_TAU 2.0		/* readings: each halves the offset */

void servo_begin(struct servo *servo, double found_ppb, double most_ppb);
/* A reading: `off_ns` > 0, the clock is ahead of job time. The frequency to set, in ppb. */
double servo_turn(struct servo *servo, int64_t raw_ns, double off_ns, double period_s);
/* The frequency at which it runs as job time does, as far as that is known. */
double servo_hold(struct servo *servo);

#endif
