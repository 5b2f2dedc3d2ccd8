/* Fixed work and an Allreduce of 8 bytes, in turn, for so many seconds; rank 0 prints the means. */
#include <mpi.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>
static double cpu(void)
{
	struct timespec t;
	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec + t.tv_nsec * 1e-9;
}
int main(int argc, char **argv)
{
	double seconds = atof(argv[1]), work = 0, reduce = 0, value = 1, sum = 0, x = 1;
	long quanta = 0;
	int rank, more = 1;
	MPI_Init(&argc, &argv);
	MPI_Comm_rank(MPI_COMM_WORLD, &rank);
	for (double begin = cpu(); more; quanta++) {
		double a = cpu(), b, c;
		for (int i = 0; i < 100000; i++)
			x = x * 1.0000001 + 1e-9;
		b = cpu();
		MPI_Allreduce(&value, &sum, 1, MPI_DOUBLE, MPI_SUM, MPI_COMM_WORLD);
		c = cpu();
		work += b - a, reduce += c - b;
		more = c - begin < seconds;
		MPI_Bcast(&more, 1, MPI_INT, 0, MPI_COMM_WORLD);
	}
	if (rank == 0)
		printf("{\"quanta\": %ld, \"work_us\": %.4f, \"allreduce_us\": %.4f, \"x\": %g}\n", quanta,
		       work / quanta * 1e6, reduce / quanta * 1e6, x);
	MPI_Finalize();
	return 0;
}
