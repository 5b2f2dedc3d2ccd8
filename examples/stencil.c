/* Heat on a ring in C and MPI, with checkpoints in files: goes on where it was when a rank or a
 * node dies.
 *
 *   mpicc -O2 -o stencil examples/stencil.c -lfabricckpt
 *   fabricctl run --spares 1 ./stencil 2000 200
 *
 * Arguments: steps, steps between checkpoints, milliseconds of sleep in each step. Every rank holds a
 * piece of the ring. Rank 0 prints where it began and a hash of the whole ring: the same whatever died. */
#include <fabric_ckpt.h>
#include <inttypes.h>
#include <mpi.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#define CELLS 4096

static double heat[CELLS + 2]; /* with the neighbours' ends */

/* The piece of the ring, in one file. */
static void file(const char *how, size_t (*move)(void *, size_t, size_t, FILE *))
{
	char path[4200];
	FILE *stream;

	snprintf(path, sizeof path, "%s/heat.bin", fabric_ckpt_dir());
	stream = fopen(path, how);
	if (!stream || move(heat + 1, sizeof *heat, CELLS, stream) != CELLS || fclose(stream) != 0) {
		perror(path);
		MPI_Abort(MPI_COMM_WORLD, 1);
	}
}

static size_t put(void *at, size_t size, size_t count, FILE *stream)
{
	return fwrite(at, size, count, stream);
}

int main(int argc, char **argv)
{
	uint64_t steps = argc > 1 ? strtoull(argv[1], NULL, 10) : 1000, begin, seed;
	uint64_t every = argc > 2 ? strtoull(argv[2], NULL, 10) : 100, hash = 0xcbf29ce484222325;
	useconds_t pause_us = argc > 3 ? (useconds_t)atoi(argv[3]) * 1000 : 0;
	int rank, ranks, left, right, status;
	double *all = NULL;

	MPI_Init(&argc, &argv);
	MPI_Comm_rank(MPI_COMM_WORLD, &rank);
	MPI_Comm_size(MPI_COMM_WORLD, &ranks);
	left = (rank + ranks - 1) % ranks, right = (rank + 1) % ranks;
	seed = (uint64_t)rank + 1;
	for (int i = 1; i <= CELLS; i++) {
		seed = seed * 6364136223846793005u + 1442695040888963407u;
		heat[i] = (double)(seed >> 11) / 9007199254740992.0;
	}
	status = fabric_ckpt_restore(&begin, 0);
	if (status == 0)
		file("rb", fread);
	else if (status != 66) /* 66: the first start */
		MPI_Abort(MPI_COMM_WORLD, 1);
	if (rank == 0)
		printf("from step %" PRIu64 "\n", begin), fflush(stdout);
	for (uint64_t n = begin; n < steps; n++) {
		double before = 0;

		MPI_Sendrecv(heat + CELLS, 1, MPI_DOUBLE, right, 0, heat, 1, MPI_DOUBLE, left, 0,
			     MPI_COMM_WORLD, MPI_STATUS_IGNORE);
		MPI_Sendrecv(heat + 1, 1, MPI_DOUBLE, left, 1, heat + CELLS + 1, 1, MPI_DOUBLE, right,
			     1, MPI_COMM_WORLD, MPI_STATUS_IGNORE);
		before = heat[0];
		for (int i = 1; i <= CELLS; i++) {
			double now = heat[i];

			heat[i] += 0.25 * (before - 2 * now + heat[i + 1]);
			before = now;
		}
		usleep(pause_us);
		if ((n + 1) % every == 0 && n + 1 < steps) {
			file("wb", put);
			if (fabric_ckpt_commit(n + 1) != 0 && rank == 0)
				fprintf(stderr, "step %" PRIu64 " is not saved\n", n + 1);
		}
	}
	if (rank == 0)
		all = malloc(sizeof *all * CELLS * (size_t)ranks);
	MPI_Gather(heat + 1, CELLS, MPI_DOUBLE, all, CELLS, MPI_DOUBLE, 0, MPI_COMM_WORLD);
	if (rank == 0) {
		for (size_t i = 0; i < sizeof *all * CELLS * (size_t)ranks; i++)
			hash = (hash ^ ((unsigned char *)all)[i]) * 0x100000001b3; /* FNV-1a */
		printf("ring %016" PRIx64 "\n", hash);
	}
	free(all);
	fabric_ckpt_done();
	MPI_Finalize();
	return 0;
}
