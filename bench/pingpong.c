/* Two ranks send 8 bytes to and fro: microseconds of a round trip, the median of 200 batches, or of
 * as many as 5 s hold (ranks that wait for a core take milliseconds each way). */
#include <mpi.h>
#include <stdio.h>
#include <stdlib.h>

enum { BATCHES = 200, TRIPS = 500 };

static int order(const void *a, const void *b)
{
	double x = *(const double *)a, y = *(const double *)b;

	return (x > y) - (x < y);
}

int main(int argc, char **argv)
{
	double data = 1, took[BATCHES], first;
	int rank, more = 1, done = 0;

	MPI_Init(&argc, &argv);
	MPI_Comm_rank(MPI_COMM_WORLD, &rank);
	first = MPI_Wtime();
	while (more) {
		double begin = MPI_Wtime();

		for (int i = 0; i < TRIPS; i++) {
			if (rank == 0)
				MPI_Send(&data, 1, MPI_DOUBLE, 1, 0, MPI_COMM_WORLD);
			MPI_Recv(&data, 1, MPI_DOUBLE, !rank, 0, MPI_COMM_WORLD, MPI_STATUS_IGNORE);
			if (rank == 1)
				MPI_Send(&data, 1, MPI_DOUBLE, 0, 0, MPI_COMM_WORLD);
		}
		took[done++] = (MPI_Wtime() - begin) / TRIPS * 1e6;
		more = done < BATCHES && MPI_Wtime() - first < 5;
		MPI_Bcast(&more, 1, MPI_INT, 0, MPI_COMM_WORLD);
	}
	qsort(took, done, sizeof *took, order);
	if (rank == 0)
		printf("%.4f\n", took[done / 2]);
	MPI_Finalize();
	return 0;
}
