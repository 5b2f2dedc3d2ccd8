/* Waits until job time is known on its node: the job, and when that was (bench/clock_first.py). */
#include <stdio.h>
#include <stdlib.h>
#include <time.h>
#include "fabric_clock.h"
int main(void)
{
	struct timespec pause = { 0, 10000000 }, now;
	struct fabric_clock_reading reading;

	for (int i = 0; i < 2000; i++, nanosleep(&pause, NULL)) {
		struct fabric_clock *clock = fabric_clock_open(NULL);
		int known = clock && !fabric_clock_now(clock, &reading)
			    && reading.status == FABRIC_CLOCK_SYNCHRONISED;

		if (clock)
			fabric_clock_close(clock);
		clock_gettime(CLOCK_REALTIME, &now);
		if (known)
			return printf("%s %lld\n", getenv("SLURM_JOB_ID"),
				      now.tv_sec * 1000000000LL + now.tv_nsec) < 0;
	}
	return 1;
}
