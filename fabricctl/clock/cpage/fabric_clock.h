/* The job clock for programs: what time is it on the whole job, and how sure is that.
 *
 *	struct fabric_clock *clock = fabric_clock_open(NULL);	// the job's, from the environment
 *	struct fabric_clock_reading r;
 *	if (clock && fabric_clock_now(clock, &r) == 0)
 *		printf("%ld ns, true within [%ld, %ld]\n", r.time_ns, r.earliest_ns, r.latest_ns);
 *
 * Link with -lfabricclock. The page that it reads is drawn in docs/clock.md. A reading costs one clock_gettime and no
 * system call. Any number of threads and processes may read. */
#ifndef FABRIC_CLOCK_H
#define FABRIC_CLOCK_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

enum fabric_clock_status {
	FABRIC_CLOCK_UNSYNCHRONISED = 0, /* there is no job time yet */
	FABRIC_CLOCK_SYNCHRONISED = 1,
	FABRIC_CLOCK_HOLDOVER = 2, /* no measurement for a second or more: bounds grow */
};

struct fabric_clock_reading {
	int64_t time_ns; /* job time: begins near CLOCK_REALTIME, never steps, never runs back */
	int64_t earliest_ns, latest_ns; /* it is certainly between these, whatever the network did */
	int64_t likely_ns; /* it is within time_ns -+ this in 99.9 % of readings, symmetric paths given */
	int32_t status; /* enum fabric_clock_status */
};

struct fabric_clock;

/* file NULL: $FABRIC_JOB_DIR/clock. NULL with errno when there is none, ENOTSUP when it is of
 * another version. */
struct fabric_clock *fabric_clock_open(const char *file);
void fabric_clock_close(struct fabric_clock *clock);
/* 0; -1 and errno EAGAIN while there is no job time. */
int fabric_clock_now(const struct fabric_clock *clock, struct fabric_clock_reading *reading);
/* -1: a was before b, 1: after, 0: nobody can tell. */
int fabric_clock_compare(
	const struct fabric_clock_reading *a, const struct fabric_clock_reading *b
);

#ifdef __cplusplus
}
#endif

#endif
