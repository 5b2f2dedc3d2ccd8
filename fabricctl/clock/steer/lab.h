/* A lab node's CLOCK_REALTIME: a virtual one, so that no test touches this machine's.
 *
 * The file `system` of the node's lab directory (fabricctl/lab/vclock.py, SystemClock) has it: it runs
 * with the node's virtual clock, sped up by the frequency that was set. */
#ifndef FABRIC_STEER_LAB_H
#define FABRIC_STEER_LAB_H

#include <stdint.h>
#include <sys/timex.h>

int lab_open(const char *directory); /* a descriptor, -1 with errno */
int64_t lab_now_ns(int fd, int64_t raw_ns);
int lab_adjust(int fd, struct timex *tx); /* as clock_adjtime(2) */

#endif
