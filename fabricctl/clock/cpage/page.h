/* The clock page: one file a job and node, written by the agent, mapped by programs.
 * docs/clock.md draws it; all in the machine's own byte order. */
#ifndef FABRIC_CLOCK_PAGE_H
#define FABRIC_CLOCK_PAGE_H

#include <math.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <string.h>
#include <time.h>

#include "fabric_clock.h"

#define PAGE_MAGIC 0x50434246u /* "FBCP" */
#define PAGE_VERSION 1
#define PAGE_ROWS 1024 /* a row a second: conversions reach 17 minutes back */
#define PAGE_YIELD 256
#define PAGE_TRIES 1000000 /* a writer killed in the middle must not hang its readers */

/* One instant on all clocks of the node, and job time. */
struct page_row {
	int64_t raw_ns, mono_ns, real_ns;
	uint64_t tsc; /* 0 where there is none */
	int64_t job_ns;
	double likely_ns; /* error of job_ns */
};

/* Job time is piecewise linear in CLOCK_MONOTONIC_RAW: at raw0 the rate changes to rate0, which
 * leads to the clock's best line at raw1, and that is followed from there on. */
struct page_body {
	uint32_t status;
	uint32_t job, node;
	uint32_t stamps; /* where they come from: enum stamp_source of csrc/probe.h; 0: not said */
	int64_t raw0_ns, job0_ns, raw1_ns, job1_ns;
	double rate_before, rate0, rate1; /* job seconds per second, less 1 */
	double slew_ns; /* what is still wrong until raw1, on top of the bounds */
	int64_t state_raw_ns; /* the instant of what follows */
	double p_theta, p_cross, p_drift, wander2; /* ns, s: the filter's covariance and its growth */
	double sigmas, asymmetry_ns;
	int64_t hard_raw_ns;
	double hard_least_ns, hard_most_ns, hard_drift_ppb;
	int64_t holdover_raw_ns; /* from here on, unless written again, the clock holds over */
	uint64_t rows; /* written so far; row i is in place i % PAGE_ROWS */
};

struct page {
	uint32_t magic;
	uint16_t version, pad;
	_Atomic uint32_t sequence; /* odd while the body is written */
	uint32_t bytes;
	struct page_body body;
	struct page_row row[PAGE_ROWS];
};

static inline int64_t page_clock_ns(clockid_t clock)
{
	struct timespec t;

	clock_gettime(clock, &t);
	return t.tv_sec * 1000000000LL + t.tv_nsec;
}

#define PAGE_RAW_MOST (1LL << 60) /* 36 years of a node's uptime */
#define PAGE_JOB_MOST (1LL << 62) /* the year 2116 */
#define PAGE_BOUND_MOST 1e18

/* Whether these are times of a clock: nobody's arithmetic may overflow on what somebody wrote. */
static inline bool page_sane(const struct page_body *b)
{
	const int64_t raw[] = {b->raw0_ns, b->raw1_ns, b->state_raw_ns, b->hard_raw_ns};
	const int64_t job[] = {b->job0_ns, b->job1_ns};
	const double rate[] = {b->rate_before, b->rate0, b->rate1};
	bool sane = true;

	for (int i = 0; i < 4; i++)
		sane &= raw[i] > -PAGE_RAW_MOST && raw[i] < PAGE_RAW_MOST;
	for (int i = 0; i < 2; i++)
		sane &= job[i] > -PAGE_JOB_MOST && job[i] < PAGE_JOB_MOST;
	for (int i = 0; i < 3; i++)
		sane &= fabs(rate[i]) < 0.01;
	return sane;
}

static inline int64_t page_job_ns(const struct page_body *b, int64_t raw_ns)
{
	int64_t since = raw_ns - b->raw1_ns;

	if (since >= 0)
		return b->job1_ns + since + (int64_t)((double)since * b->rate1);
	since = raw_ns - b->raw0_ns;
	return b->job0_ns + since
	       + (int64_t)((double)since * (since < 0 ? b->rate_before : b->rate0));
}

static inline double page_likely_ns(const struct page_body *b, int64_t raw_ns)
{
	double dt = (double)(raw_ns - b->state_raw_ns) * 1e-9;
	double p = b->p_theta + dt * (2 * b->p_cross + dt * (b->p_drift + dt * b->wander2 / 3));

	return b->sigmas * sqrt(p > 0 ? p : 0) + b->asymmetry_ns
	       + (raw_ns < b->raw1_ns ? b->slew_ns : 0);
}

static inline void page_reading(
	const struct page_body *b, int64_t raw_ns, struct fabric_clock_reading *r
)
{
	double dt = fabs((double)(raw_ns - b->hard_raw_ns) * 1e-9);
	/* Five standard deviations of the drift, and of its walk since. */
	double grown = dt * (b->hard_drift_ppb + 5 * sqrt(b->wander2 * dt))
		       + (raw_ns < b->raw1_ns ? b->slew_ns : 0) + 1;
	double likely = page_likely_ns(b, raw_ns);
	double before = b->hard_most_ns + grown, after = grown - b->hard_least_ns;

	r->time_ns = page_job_ns(b, raw_ns);
	r->likely_ns = fabs(likely) < PAGE_BOUND_MOST ? (int64_t)ceil(likely) : INT64_MAX;
	r->earliest_ns = fabs(before) < PAGE_BOUND_MOST ? r->time_ns - (int64_t)ceil(before) : INT64_MIN;
	r->latest_ns = fabs(after) < PAGE_BOUND_MOST ? r->time_ns + (int64_t)ceil(after) : INT64_MAX;
	r->status = (int32_t)b->status;
	if (b->status == FABRIC_CLOCK_SYNCHRONISED && raw_ns > b->holdover_raw_ns)
		r->status = FABRIC_CLOCK_HOLDOVER;
}

/* The reading at raw_ns, or now when that is 0. The raw time is then read inside: a body that was
 * replaced meanwhile is not used with it. -1: no job time, or the writer died in the middle. */
static inline int page_read(
	const struct page *page, int64_t raw_ns, struct fabric_clock_reading *r
)
{
	struct page_body body;

	for (int i = 0; i < PAGE_TRIES; i++) {
		uint32_t before = atomic_load_explicit(&page->sequence, memory_order_acquire);
		int64_t raw;

		if (before & 1) {
			if (i % PAGE_YIELD == PAGE_YIELD - 1)
				sched_yield(); /* the writer may have been pushed aside by us */
			continue;
		}
		memcpy(&body, &page->body, sizeof(body));
		raw = raw_ns ? raw_ns : page_clock_ns(CLOCK_MONOTONIC_RAW);
		atomic_thread_fence(memory_order_acquire);
		if (atomic_load_explicit(&page->sequence, memory_order_relaxed) != before)
			continue;
		if (body.status == FABRIC_CLOCK_UNSYNCHRONISED || !page_sane(&body))
			return -1;
		page_reading(&body, raw, r);
		return 0;
	}
	return -1;
}

static inline void page_write(struct page *page, const struct page_body *body)
{
	uint32_t sequence = atomic_load_explicit(&page->sequence, memory_order_relaxed) | 1;

	atomic_store_explicit(&page->sequence, sequence, memory_order_relaxed);
	atomic_thread_fence(memory_order_release);
	memcpy(&page->body, body, sizeof(*body));
	atomic_store_explicit(&page->sequence, sequence + 1, memory_order_release);
}

#endif
