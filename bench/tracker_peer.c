/* The peer of bench/tracker.py: the least that a PMPI profiler does which keeps times by call site
 * (mpiP, IPM): two clock_gettime and the update of an entry found by a hash. */
#include <stdint.h>
#include <time.h>

int PMPI_Send(const void *from, int count, int type, int to, int tag, int comm);

static struct entry {
	uint64_t key, calls, ns, bytes;
} table[4096];

static uint64_t now_ns(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

int MPI_Send(const void *from, int count, int type, int to, int tag, int comm)
{
	uint64_t begin = now_ns();
	int result = PMPI_Send(from, count, type, to, tag, comm);
	uint64_t took = now_ns() - begin, key = (uint64_t)__builtin_return_address(0);
	uint32_t at = (uint32_t)((key ^ (uint64_t)to << 7) * 0x9e3779b97f4a7c15u >> 52);

	while (table[at].key && table[at].key != key)
		at = (at + 1) & 4095;
	table[at].key = key;
	table[at].calls++;
	table[at].ns += took;
	table[at].bytes += (uint64_t)count * 8;
	return result;
}
