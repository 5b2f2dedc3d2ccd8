/* The clock of the stamps, and what it was beside CLOCK_MONOTONIC. */
#ifndef FABRIC_CLOCKS_H
#define FABRIC_CLOCKS_H

#include "track.h"

#include <time.h>

/* The counter that costs least: the CPU's own where user programs may read it, else ns. */
static inline uint64_t ticks_now(void)
{
#if defined __x86_64__
#define TICKS_SOURCE 1
	return __builtin_ia32_rdtsc();
#elif defined __aarch64__
#define TICKS_SOURCE 2
	uint64_t value;
	__asm__ volatile("mrs %0, cntvct_el0" : "=r"(value));
	return value;
#else
#define TICKS_SOURCE 3
	struct timespec now;
	clock_gettime(CLOCK_MONOTONIC, &now);
	return (uint64_t)now.tv_sec * 1000000000ULL + (uint64_t)now.tv_nsec;
#endif
}

/* Stamps both clocks into the block's second pair; readers see by its number that it is whole. */
void pair_clocks(struct track_header *head);

#define PAIR_TICKS (1ULL << 29) /* some tenths of a second: how stale the second pair may be */

/* The first pair, and 2 ms later the second: from then on ticks can be told in ns. */
void begin_clocks(struct track_header *head);

#endif
