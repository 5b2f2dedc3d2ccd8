/* Two ranks send 8 bytes to and fro: microseconds of a round trip, the median of 20 batches. */
#include <mpi.h>
#include <stdio.h>
#include <stdlib.h>

static int order(const void *a, const void *b)
{
	double x = *(const double *)a, y = *(const double *)b;

	return (x > y) - (x < y);
}

int main(int argc, char **argv)
{
	double data = 1, took[20];
	int rank;

	MPI_Init(&argc, &argv);
	MPI_Comm_rank(MPI_COMM_WORLD, &rank);
	for (int batch = 0; batch < 20; batch++) {
		double begin = MPI_Wtime();

		for (int i = 0; i < 5000; i++) {
			if (rank == 0)
				MPI_Send(&data, 1, MPI_DOUBLE, 1, 0, MPI_COMM_WORLD);
			MPI_Recv(&data, 1, MPI_DOUBLE, !rank, 0, MPI_COMM_WORLD, MPI_STATUS_IGNORE);
			if (rank == 1)
				MPI_Send(&data, 1, MPI_DOUBLE, 0, 0, MPI_COMM_WORLD);
		}
		took[batch] = (MPI_Wtime() - begin) / 5000 * 1e6;
	}
	qsort(took, 20, sizeof *took, order);
	if (rank == 0)
		printf("%.4f\n", took[10]);
	MPI_Finalize();
	return 0;
}
