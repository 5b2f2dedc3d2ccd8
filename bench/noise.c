/* Fixed work and an Allreduce of 8 bytes, in turn, for so many seconds. Rank 0 prints a line for each
 * tenth of a second: when it ended (CLOCK_REALTIME, s), quanta, and the means of both in us. */
#include <mpi.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

#define SLOT_S 0.1

static double now(clockid_t clock)
{
	struct timespec t;

	clock_gettime(clock, &t);
	return t.tv_sec + t.tv_nsec * 1e-9;
}

int main(int argc, char **argv)
{
	double seconds = atof(argv[1]), work = 0, reduce = 0, value = 0, sum = 0, x = 1, begin, slot;
	long quanta = 0;
	int rank, more = 1;

	MPI_Init(&argc, &argv);
	MPI_Comm_rank(MPI_COMM_WORLD, &rank);
	begin = slot = now(CLOCK_MONOTONIC);
	while (more) {
		double a = now(CLOCK_MONOTONIC), b, c;

		for (int i = 0; i < 100000; i++)
			x = x * 1.0000001 + 1e-9;
		b = now(CLOCK_MONOTONIC);
		value = rank == 0 && b - begin >= seconds; /* the sum tells everybody when it is over */
		MPI_Allreduce(&value, &sum, 1, MPI_DOUBLE, MPI_SUM, MPI_COMM_WORLD);
		c = now(CLOCK_MONOTONIC);
		more = sum < 1;
		work += b - a, reduce += c - b, quanta++;
		if (rank == 0 && c - slot >= SLOT_S) {
			printf("%.4f %ld %.4f %.4f\n", now(CLOCK_REALTIME), quanta, work / quanta * 1e6,
			       reduce / quanta * 1e6);
			slot = c, work = reduce = 0, quanta = 0;
		}
	}
	MPI_Finalize();
	return x == 0; /* nobody may leave the work out */
}
