/* The clock of a NIC (PHC), which its stamps are of, into CLOCK_MONOTONIC_RAW. Read once a tick, between
 * two system calls or as the hardware does it; a stamp between two readings lies on the line through
 * them. Each stamp has an error bound: half the narrowest reading, and what the clock did not run
 * straight since the reading before. */
#ifndef FABRIC_CLOCK_PHC_H
#define FABRIC_CLOCK_PHC_H

#include "stamps.h"

#define PHC_ERROR_MAX_NS 10000 /* worse, and the kernel's own stamps are better */

enum phc_way { /* of reading; the best that the driver and the kernel have */
	PHC_PRECISE, /* both clocks latched by the hardware (PTP_SYS_OFFSET_PRECISE) */
	PHC_EXTENDED_RAW, /* PTP_SYS_OFFSET_EXTENDED on CLOCK_MONOTONIC_RAW, since Linux 6.12 */
	PHC_EXTENDED, /* on CLOCK_REALTIME */
	PHC_PLAIN, /* PTP_SYS_OFFSET: the whole call of the driver lies in between */
	PHC_REFUSED,
};

struct phc {
	int fd;
	enum phc_way way;
	unsigned known; /* readings in a row, at most 3: stamps are converted from the third on */
	struct anchor before, now; /* real_ns: of the PHC */
	int64_t narrowest_ns;
	int64_t reading_error_ns; /* of the last two, the worse */
	int64_t error_ns; /* of stamps between them */
};

/* One more reading, its error at most error_ns. */
void phc_take(struct phc *phc, int64_t raw_ns, int64_t phc_ns, int64_t error_ns);
/* A stamp as raw time. False: it cannot be told to PHC_ERROR_MAX_NS. */
bool phc_convert(const struct phc *phc, int64_t phc_ns, int64_t *raw_ns, int64_t *error_ns);
/* Reads the clock beside the system's, of which two anchors are given, and takes it in. */
void phc_read(struct phc *phc, const struct anchor *before, const struct anchor *now);

#endif
