#include "phc.h"

#include <linux/ptp_clock.h>
#include <math.h>
#include <stdlib.h>
#include <sys/ioctl.h>
#include <time.h>

#define SAMPLES 5 /* of one reading; the narrowest counts */
/* What two clocks that the hardware latches may be apart: Linux does not say; PCIe's own time
 * (PTM) is good to some tens of ns. */
#define PRECISE_ERROR_NS 100
#define WIDTH_SLACK_NS 1000 /* wider than twice the narrowest by this: somebody came between */

struct reading {
	int64_t raw_ns, phc_ns, error_ns;
};

void phc_take(struct phc *phc, int64_t raw_ns, int64_t phc_ns, int64_t error_ns)
{
	int64_t bent = 0;

	if (phc->known >= 2) {
		/* Where the line through the last two would have led. */
		double rate = (double)(phc->now.raw_ns - phc->before.raw_ns)
			      / (double)(phc->now.real_ns - phc->before.real_ns);
		int64_t passed = phc_ns - phc->now.real_ns;

		bent = llabs(raw_ns - phc->now.raw_ns - llrint((double)passed * rate));
	}
	if (phc->known && (raw_ns <= phc->now.raw_ns || phc_ns <= phc->now.real_ns
			   || bent > PHC_ERROR_MAX_NS))
		phc->known = 0; /* stepped, or steered hard: begin again */
	phc->before = phc->now;
	phc->now = (struct anchor){ .raw_ns = raw_ns, .real_ns = phc_ns, .width_ns = 2 * error_ns };
	phc->known += phc->known < 3;
	phc->reading_error_ns = phc->before.width_ns > phc->now.width_ns ? phc->before.width_ns / 2
									 : error_ns;
	phc->error_ns = phc->reading_error_ns + bent;
}

bool phc_convert(const struct phc *phc, int64_t phc_ns, int64_t *raw_ns, int64_t *error_ns)
{
	static const struct virtual_clock none; /* the caller's business */
	double span = (double)(phc->now.real_ns - phc->before.real_ns), outside;

	if (phc->known < 3
	    || !anchor_convert(&phc->before, &phc->now, &none, phc_ns, raw_ns))
		return false;
	/* Outside of the two readings an error of theirs grows. */
	outside = fmax((double)(phc_ns - phc->now.real_ns), (double)(phc->before.real_ns - phc_ns));
	outside = fmax(outside / span, 0);
	*error_ns = phc->error_ns + llrint(outside * (double)(2 * phc->error_ns));
	return outside <= 1 && *error_ns <= PHC_ERROR_MAX_NS;
}

static int64_t ns_of(const struct ptp_clock_time *t)
{
	return t->sec * 1000000000LL + t->nsec;
}

/* A system clock's reading around the PHC's, if it is narrower than the best. */
static void
consider(struct reading *best, int64_t begin_ns, const struct ptp_clock_time *phc, int64_t end_ns)
{
	int64_t error = (end_ns - begin_ns) / 2 + 1;

	if (end_ns >= begin_ns && error < best->error_ns)
		*best = (struct reading){ begin_ns + (end_ns - begin_ns) / 2, ns_of(phc), error };
}

static bool read_precise(int fd, struct reading *best)
{
	struct ptp_sys_offset_precise found = { 0 };

	if (ioctl(fd, PTP_SYS_OFFSET_PRECISE, &found))
		return false;
	*best = (struct reading){ ns_of(&found.sys_monoraw), ns_of(&found.device), PRECISE_ERROR_NS };
	return true;
}

static bool read_extended(int fd, bool raw, struct reading *best)
{
	struct ptp_sys_offset_extended found = { .n_samples = SAMPLES };

	if (raw)
		found.rsv[0] = CLOCK_MONOTONIC_RAW; /* `clockid` since Linux 6.12; refused before */
	if (ioctl(fd, PTP_SYS_OFFSET_EXTENDED, &found))
		return false;
	for (unsigned i = 0; i < SAMPLES; i++)
		consider(best, ns_of(&found.ts[i][0]), &found.ts[i][1], ns_of(&found.ts[i][2]));
	return true;
}

static bool read_plain(int fd, struct reading *best)
{
	struct ptp_sys_offset found = { .n_samples = SAMPLES };

	if (ioctl(fd, PTP_SYS_OFFSET, &found))
		return false;
	for (unsigned i = 0; i < 2 * SAMPLES; i += 2)
		consider(best, ns_of(&found.ts[i]), &found.ts[i + 1], ns_of(&found.ts[i + 2]));
	return true;
}

static bool read_by(int fd, enum phc_way way, struct reading *best)
{
	*best = (struct reading){ .error_ns = INT64_MAX };
	switch (way) {
	case PHC_PRECISE:
		return read_precise(fd, best);
	case PHC_EXTENDED_RAW:
	case PHC_EXTENDED:
		return read_extended(fd, way == PHC_EXTENDED_RAW, best);
	case PHC_PLAIN:
		return read_plain(fd, best);
	default:
		return false;
	}
}

void phc_read(struct phc *phc, const struct anchor *before, const struct anchor *now)
{
	static const struct virtual_clock none;
	struct reading found;

	while (!read_by(phc->fd, phc->way, &found)) {
		/* What worked once is out of order for a while: no stamp is converted meanwhile. */
		phc->known = 0;
		if (phc->narrowest_ns || phc->way == PHC_REFUSED)
			return;
		phc->way++;
	}
	if (found.error_ns == INT64_MAX)
		return; /* the system clock was set back in the middle */
	if (!phc->narrowest_ns || found.error_ns < phc->narrowest_ns)
		phc->narrowest_ns = found.error_ns;
	if (found.error_ns > 2 * phc->narrowest_ns + WIDTH_SLACK_NS) {
		phc->narrowest_ns += 1 + phc->narrowest_ns / 64;
		return;
	}
	if (phc->way == PHC_EXTENDED || phc->way == PHC_PLAIN) {
		/* What was read is CLOCK_REALTIME. */
		if (!anchor_convert(before, now, &none, found.raw_ns, &found.raw_ns)) {
			phc->known = 0;
			return;
		}
		found.error_ns += now->width_ns / 2;
	}
	phc_take(phc, found.raw_ns, found.phc_ns, found.error_ns);
}
