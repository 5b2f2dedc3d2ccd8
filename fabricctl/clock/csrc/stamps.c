#include "stamps.h"

#include <math.h>
#include <stdlib.h>
#include <time.h>

#define TRIES 4 /* the narrowest reading is kept; the first often meets cold caches */
/* The kernel slews CLOCK_REALTIME by at most 500 ppm (adjtimex(2)), 10 % with ticks changed; what
 * exceeds that between two anchors is a step. */
#define SLEW_MAX 0.0015
#define STEP_NS 2000

static int64_t read_ns(clockid_t clock)
{
	struct timespec t;

	clock_gettime(clock, &t);
	return t.tv_sec * 1000000000LL + t.tv_nsec;
}

int64_t raw_now_ns(void)
{
	return read_ns(CLOCK_MONOTONIC_RAW);
}

int64_t mono_now_ns(void)
{
	return read_ns(CLOCK_MONOTONIC);
}

struct anchor anchor_read(void)
{
	struct anchor best = { .width_ns = INT64_MAX };

	for (int i = 0; i < TRIES; i++) {
		int64_t before = raw_now_ns();
		int64_t real = read_ns(CLOCK_REALTIME);
		int64_t middle = raw_now_ns();
		int64_t mono = read_ns(CLOCK_MONOTONIC);
		int64_t after = raw_now_ns();

		if (after - before < best.width_ns)
			best = (struct anchor){
				.raw_ns = before + (middle - before) / 2,
				.real_ns = real,
				/* mono was read half a reading after middle. */
				.mono_ns = mono - (after - before) / 2,
				.width_ns = after - before,
			};
	}
	return best;
}

int64_t virtual_error_ns(const struct virtual_clock *virtual, int64_t mono_ns)
{
	double passed_s = (double)(mono_ns - virtual->begin_mono_ns) * 1e-9;
	double error = virtual->drift_ppb * passed_s;

	if (!virtual->used)
		return 0;
	for (unsigned i = 0; i < virtual->waves; i++) {
		double angle = 2 * M_PI * passed_s / virtual->period_s[i];

		error += virtual->amplitude_ns[i]
			 * (sin(angle + virtual->phase[i]) - sin(virtual->phase[i]));
	}
	for (unsigned i = 0; i < virtual->steps; i++)
		if (passed_s >= virtual->step_s[i])
			error += virtual->step_ns[i];
	return virtual->offset_ns + llrint(error);
}

bool anchor_convert(
	const struct anchor *before,
	const struct anchor *now,
	const struct virtual_clock *virtual,
	int64_t real_ns,
	int64_t *raw_ns
)
{
	double span = (double)(now->real_ns - before->real_ns);
	double lead = (double)((now->raw_ns - before->raw_ns) - (now->real_ns - before->real_ns));
	/* CLOCK_MONOTONIC is slewed with CLOCK_REALTIME and never stepped; a NIC's anchors have none. */
	int64_t step = (now->real_ns - before->real_ns) - (now->mono_ns - before->mono_ns);
	double share;

	if (span <= 0 || fabs(lead) > SLEW_MAX * span + STEP_NS
	    || (now->mono_ns && llabs(step) > before->width_ns + now->width_ns))
		return false;
	share = (double)(real_ns - now->real_ns) / span;
	if (share < -64 || share > 1)
		return false;
	*raw_ns = now->raw_ns + (real_ns - now->real_ns) + llrint(share * lead);
	if (virtual->used)
		*raw_ns += virtual_error_ns(virtual, now->mono_ns + (real_ns - now->real_ns));
	return true;
}
