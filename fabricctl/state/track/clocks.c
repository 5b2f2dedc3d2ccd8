#include "clocks.h"

static uint64_t mono_ns(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return (uint64_t)now.tv_sec * 1000000000ULL + (uint64_t)now.tv_nsec;
}

void pair_clocks(struct track_header *head)
{
	uint64_t ticks = ticks_now(), ns = mono_ns();

	ticks = ticks / 2 + ticks_now() / 2;
	__atomic_store_n(&head->pair, head->pair + 1, __ATOMIC_RELEASE);
	__atomic_thread_fence(__ATOMIC_RELEASE);
	head->last_ticks = ticks;
	head->last_mono_ns = ns;
	__atomic_store_n(&head->pair, head->pair + 1, __ATOMIC_RELEASE);
}

void begin_clocks(struct track_header *head)
{
	struct timespec wait = {.tv_nsec = 2000000};

	pair_clocks(head);
	head->first_ticks = head->last_ticks;
	head->first_mono_ns = head->last_mono_ns;
	nanosleep(&wait, NULL);
	pair_clocks(head);
}
