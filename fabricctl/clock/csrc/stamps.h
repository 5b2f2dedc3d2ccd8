/* The node's clocks: kernel stamps (CLOCK_REALTIME) into CLOCK_MONOTONIC_RAW, which nobody
 * steers. */
#ifndef FABRIC_CLOCK_STAMPS_H
#define FABRIC_CLOCK_STAMPS_H

#include <stdbool.h>
#include <stdint.h>

/* One instant on three clocks. raw_ns is CLOCK_MONOTONIC_RAW itself. */
struct anchor {
	int64_t raw_ns, real_ns, mono_ns;
	int64_t width_ns; /* how long the readings took */
};

/* A virtual clock of the lab: raw time shows this much more; fabricctl/lab/vclock.py. */
#define VIRTUAL_TERMS 16
struct virtual_clock {
	bool used;
	int64_t begin_mono_ns, offset_ns;
	double drift_ppb;
	unsigned waves, steps;
	double amplitude_ns[VIRTUAL_TERMS], period_s[VIRTUAL_TERMS], phase[VIRTUAL_TERMS];
	double step_s[VIRTUAL_TERMS], step_ns[VIRTUAL_TERMS];
};

int64_t raw_now_ns(void);
int64_t mono_now_ns(void);
struct anchor anchor_read(void);
int64_t virtual_error_ns(const struct virtual_clock *virtual, int64_t mono_ns);
/* A kernel stamp that lies between two anchors (or just before the first), as raw time with the
 * virtual clock's error. False when CLOCK_REALTIME was stepped between them. */
bool anchor_convert(
	const struct anchor *before,
	const struct anchor *now,
	const struct virtual_clock *virtual,
	int64_t real_ns,
	int64_t *raw_ns
);

#endif
