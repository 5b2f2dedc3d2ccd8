/* An MPI program that never stops talking: a checked Allreduce in a loop.
 *
 *     mpicc -O2 -o allreduce examples/allreduce.c && srun --mpi=pmix ./allreduce 20
 *
 * Seconds are its argument. Rank 0 prints how many steps there were and the longest. A wrong sum ends
 * the job. */
#include <mpi.h>
#include <stdio.h>
#include <stdlib.h>

#define COUNT 32768 /* doubles: 256 KiB a step */

static double mine[COUNT], total[COUNT];

int main(int argc, char **argv)
{
	double seconds = argc > 1 ? atof(argv[1]) : 10, longest = 0, now, begin;
	long steps = 0;
	int rank, size, more = 1;

	MPI_Init(&argc, &argv);
	MPI_Comm_rank(MPI_COMM_WORLD, &rank);
	MPI_Comm_size(MPI_COMM_WORLD, &size);
	for (int i = 0; i < COUNT; i++)
		mine[i] = rank;
	for (now = begin = MPI_Wtime(); more; steps++) {
		double before = now;

		MPI_Allreduce(mine, total, COUNT, MPI_DOUBLE, MPI_SUM, MPI_COMM_WORLD);
		if (total[0] != size * (size - 1) / 2.0 || total[COUNT - 1] != total[0])
			MPI_Abort(MPI_COMM_WORLD, 1);
		now = MPI_Wtime();
		if (rank == 0 && steps == 0) {
			puts("running");
			fflush(stdout);
		}
		if (now - before > longest)
			longest = now - before;
		more = now - begin < seconds;
		MPI_Bcast(&more, 1, MPI_INT, 0, MPI_COMM_WORLD);
	}
	if (rank == 0)
		printf("%d ranks, %ld steps, every sum right; the longest took %.1f ms\n", size, steps,
		       longest * 1e3);
	MPI_Finalize();
	return 0;
}
