/* A rank's shared block: where it stands, what it did. The layout is docs/tracker.md's; whoever
 * changes it changes TRACK_VERSION, that page and fabricctl/state/track/block.py. */
#ifndef FABRIC_TRACK_H
#define FABRIC_TRACK_H

#include <stdint.h>

#define TRACK_MAGIC "FBTRACK"
#define TRACK_VERSION 1
#define TRACK_COMMS 64
#define TRACK_OPS 256
#define TRACK_RING 512 /* a power of two */

enum track_state { TRACK_STARTING, TRACK_RUNNING, TRACK_FINALIZED, TRACK_ABORTED };

struct track_header { /* 512 bytes */
	char magic[8];
	uint32_t version, size;
	uint32_t comms_at, comms, ops_at, ops, ring_at, ring;
	uint32_t pid;
	int32_t rank, ranks;
	uint32_t launch; /* counts the starts of the program in its job, from 0 */
	uint32_t state;  /* enum track_state */
	uint32_t ticks_source; /* 1: TSC, 2: CNTVCT, 3: CLOCK_MONOTONIC in ns */
	char step[24];
	char library[40];
	uint64_t start_ticks; /* of the process, as /proc/<pid>/stat has it */
	/* Two instants on both clocks, far apart: ticks to CLOCK_MONOTONIC. pair is odd while the
	 * second is being replaced. */
	uint64_t first_ticks, first_mono_ns, last_ticks, last_mono_ns, pair;
	char reserved[512 - 176];
};

#define TRACK_PHASES 8 /* the last one is for all names that found no place */

struct track_phase { /* 48 bytes: time between marks of this name */
	char name[32];
	uint64_t ticks, entered;
};

struct track_what { /* 16 bytes: two words, which are written and copied whole */
	uint32_t op;   /* place in mpi.list, or 128 and more: docs/tracker.md */
	int32_t peer;  /* destination, source or root in the communicator; -1: none of these */
	uint32_t comm; /* place in the table of communicators */
	uint32_t coll; /* number of this collective on it, from 1; 0: no collective */
};

struct track_now { /* 128 bytes: two cache lines that only the rank writes */
	uint64_t calls; /* odd: inside of the call (calls + 1) / 2 */
	uint64_t enter_ticks, exit_ticks;
	uint64_t bytes;
	struct track_what what;
	uint64_t other_threads; /* calls by other threads than the one that called MPI_Init */
	uint64_t steps, step_ticks; /* iterations that the program told, when the last ended */
	uint64_t phase, phase_ticks; /* place in the table of phases + 1, 0: none; when it began */
	uint64_t reserved[5];
};

struct track_comm { /* 64 bytes */
	uint64_t id; /* the same on all its ranks; 1: MPI_COMM_WORLD, 2: SELF, 0: not known */
	uint32_t size;
	int32_t rank;
	uint32_t colls, unused; /* collectives begun on it so far */
	uint32_t made, freed;	/* communicators made from it; 1: it was freed */
	uint64_t recent;	/* ops of the last eight collectives, a byte each, the last one lowest */
	char reserved[24];
};

struct track_op { /* 32 bytes */
	uint64_t calls, ticks, bytes, most_ticks;
};

struct track_record { /* 64 bytes, written when the call returned */
	uint64_t calls, enter_ticks, exit_ticks, bytes;
	struct track_what what;
	uint64_t reserved[2];
};

struct track_block {
	struct track_header head;
	struct track_now now;
	struct track_phase phases[TRACK_PHASES];
	struct track_comm comms[TRACK_COMMS];
	struct track_op ops[TRACK_OPS];
	struct track_record ring[TRACK_RING];
};

_Static_assert(sizeof(struct track_header) == 512, "docs/tracker.md");
_Static_assert(sizeof(struct track_now) == 128, "docs/tracker.md");
_Static_assert(sizeof(struct track_phase) * TRACK_PHASES == 384, "docs/tracker.md");
_Static_assert(sizeof(struct track_comm) == 64, "docs/tracker.md");
_Static_assert(sizeof(struct track_record) == 64, "docs/tracker.md");

/* For programs, in any language: iteration n (from 1) of the main loop has ended. */
void fabric_track_step(uint64_t n);
/* A phase of the program begins, and the one before ends; NULL or "": none begins. */
void fabric_track_mark(const char *name);
/* For hooks of other libraries: a call of op (128 to 255) begins, has ended. */
void fabric_track_enter(uint32_t op, int32_t peer, uint64_t bytes);
void fabric_track_exit(void);
/* For programs without MPI, which call it once; then collectives of all ranks, which end by
 * fabric_track_exit, and the end of the rank's work. */
void fabric_track_begin(uint32_t rank, uint32_t ranks, const char *library);
void fabric_track_meet(uint32_t op, int32_t root, uint64_t bytes);
void fabric_track_end(void);

#endif
