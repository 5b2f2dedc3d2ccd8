/* This library as a profiler plugin of NCCL (NCCL_PROFILER_PLUGIN; interface versions 4 and 5, as
 * plugins/profiler/README.md of NCCL 2.27 and 2.28 has them). NCCL's calls return at once, so that
 * where the program stands says nothing of who waits: here stands what its kernels do on the GPU, in a
 * second block of the process. An operation is entered when the first of its channels begins there
 * and left when all have ended; of several at once the block shows the oldest. Operations of a CUDA
 * graph are told by NCCL when they are captured, not when they are replayed: these are not seen.
 * NCCL calls from several threads; one lock is enough, an operation takes tens of microseconds. */
#include "clocks.h"
#include "home.h"

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define EXPORT __attribute__((visibility("default")))
#define OPS_AT_ONCE 1024 /* enqueued and not ended; more are not tracked */

enum { COLL = 1 << 1, P2P = 1 << 2, KERNEL_CHANNEL = 1 << 6 }; /* types of events */
enum { SUCCESS = 0, SYSTEM_ERROR = 2 };			       /* ncclResult_t */

struct event { /* the begin of both versions'; of `type` version 4 has the first byte alone */
	uint64_t type;
	void *parent;
	int rank;
	union {
		struct {
			uint64_t number; /* of this function, not of the communicator */
			const char *func;
			const void *from;
			void *to;
			size_t count;
			int root;
			const char *datatype;
			uint8_t channels;
		} coll;
		struct {
			const char *func;
			void *buffer;
			const char *datatype;
			size_t count;
			int peer;
			uint8_t channels;
		} p2p;
	};
};

struct comm {
	uint32_t at;	/* in the block; TRACK_COMMS - 1: it found no place */
	uint32_t colls; /* enqueued */
	int used;
};

struct op {
	struct op *next; /* of those on the GPU, the oldest first, or of the free ones */
	struct comm *comm; /* NULL: free */
	struct track_what what;
	uint64_t bytes, ticks;
	unsigned channels, begun, ended;
	int launched; /* NCCL has let go of its handle */
};

/* From op 144 on: HOOK_OPS in block.py. */
static const char *const FUNCS[] = {"AllReduce", "AllGather", "ReduceScatter", "Broadcast",
				    "Reduce",	 "Send",      "Recv"};
#define FUNCS_COUNT (sizeof FUNCS / sizeof *FUNCS)
#define FIRST_FUNC 144
#define BROADCAST 147
#define REDUCE 148
#define OTHER_FUNC 130

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static struct track_block *block;
static struct comm comms[TRACK_COMMS];
static struct op ops[OPS_AT_ONCE], *free_ops, *on_gpu, *shown;
static uint64_t done;

static int number_of(const char *const *names)
{
	for (; *names; names++) {
		const char *given = getenv(*names);

		if (given && *given && !given[strspn(given, "0123456789")])
			return atoi(given);
	}
	return -1;
}

/* Again, when the process is one of a new group: as if it had begun now. */
static int begin(int rank, int ranks)
{
	static const char *const of_rank[] = {"RANK", "OMPI_COMM_WORLD_RANK", "SLURM_PROCID", NULL};
	static const char *const of_ranks[] = {"WORLD_SIZE", "OMPI_COMM_WORLD_SIZE", "SLURM_NTASKS", NULL};
	int own = number_of(of_rank), all = number_of(of_ranks);
	struct track_header *head;

	if (!block)
		block = new_block("-nccl");
	if (!block)
		return 0;
	head = fill_head(block, "NCCL");
	head->rank = own >= 0 && own < all ? own : rank;
	head->ranks = own >= 0 && own < all ? all : ranks;
	head->state = TRACK_RUNNING;
	memset(comms, 0, sizeof comms);
	memset(ops, 0, sizeof ops);
	free_ops = on_gpu = shown = NULL;
	done = 0;
	for (struct op *op = ops; op < ops + OPS_AT_ONCE; op++)
		op->next = free_ops, free_ops = op;
	__atomic_thread_fence(__ATOMIC_SEQ_CST);
	memcpy(head->magic, TRACK_MAGIC, sizeof head->magic);
	return 1;
}

static struct comm *add_comm(uint64_t id, int rank, int ranks)
{
	struct comm *made = comms;
	struct track_comm *to;

	while (made->used && made < comms + TRACK_COMMS - 1)
		made++;
	made->used = 1;
	made->colls = 0;
	made->at = (uint32_t)(made - comms);
	if (made->at == TRACK_COMMS - 1)
		return made; /* all others share the last, whose id is 0 */
	to = &block->comms[made->at];
	__atomic_store_n(&to->id, 0, __ATOMIC_RELEASE);
	memset(to, 0, sizeof *to);
	to->size = (uint32_t)ranks;
	to->rank = rank;
	__atomic_store_n(&to->id, id | 1ULL << 63, __ATOMIC_RELEASE); /* never one of MPI's own */
	return made;
}

static uint64_t bytes_of(size_t count, const char *datatype)
{
	const char *bits = datatype ? strpbrk(datatype, "0123456789") : NULL; /* ncclBfloat16 */

	return bits ? count * (strtoul(bits, NULL, 10) / 8) : count;
}

/* Shows the oldest operation on the GPU; `calls` says how many have ended, and whether one goes on. */
static void show(void)
{
	struct track_now *now = &block->now;
	uint64_t ticks = ticks_now();

	if (on_gpu && on_gpu != shown) {
		now->what = on_gpu->what;
		now->bytes = on_gpu->bytes;
		now->enter_ticks = on_gpu->ticks;
	}
	now->exit_ticks = ticks;
	shown = on_gpu;
	__atomic_store_n(&now->calls, 2 * done + (on_gpu != NULL), __ATOMIC_RELEASE);
	if (ticks - block->head.last_ticks > PAIR_TICKS)
		pair_clocks(&block->head);
}

static struct op *enqueued(struct comm *comm, const char *func, int peer, uint64_t bytes, unsigned channels)
{
	struct op *op = free_ops;
	uint32_t kind = 0;

	if (!op)
		return NULL;
	free_ops = op->next;
	memset(op, 0, sizeof *op);
	while (kind < FUNCS_COUNT && strcmp(FUNCS[kind], func ? func : ""))
		kind++;
	op->comm = comm;
	op->bytes = bytes;
	op->channels = channels ? channels : 1;
	op->what.op = kind < FUNCS_COUNT ? FIRST_FUNC + kind : OTHER_FUNC;
	op->what.peer = peer;
	op->what.comm = comm->at;
	return op;
}

static struct op *enqueued_coll(struct comm *comm, const struct event *event)
{
	struct op *op = enqueued(comm, event->coll.func, event->coll.root,
				 bytes_of(event->coll.count, event->coll.datatype), event->coll.channels);

	comm->colls++;
	if (!op)
		return NULL;
	op->what.coll = comm->colls;
	if (op->what.op != BROADCAST && op->what.op != REDUCE)
		op->what.peer = -1; /* a root of 0 is given for all */
	return op;
}

/* Its first channel begins on the GPU. */
static void entered(struct op *op)
{
	struct track_comm *comm = &block->comms[op->what.comm];
	struct op **last = &on_gpu;

	op->ticks = ticks_now();
	if (op->what.coll) {
		comm->recent = comm->recent << 8 | op->what.op;
		comm->colls = op->what.coll;
	}
	while (*last)
		last = &(*last)->next;
	op->next = NULL;
	*last = op;
	show();
}

static void off_gpu(const struct op *op)
{
	for (struct op **at = &on_gpu; *at; at = &(*at)->next)
		if (*at == op) {
			*at = op->next;
			return;
		}
}

static void forget(struct op *op)
{
	op->comm = NULL;
	op->next = free_ops;
	free_ops = op;
}

static void left(struct op *op)
{
	struct track_op *sum = &block->ops[op->what.op];
	struct track_record *record = &block->ring[++done & (TRACK_RING - 1)];
	uint64_t ticks = ticks_now(), took = ticks - op->ticks;

	off_gpu(op);
	sum->calls++;
	sum->ticks += took;
	sum->bytes += op->bytes;
	if (took > sum->most_ticks)
		sum->most_ticks = took;
	*record = (struct track_record){2 * done, op->ticks, ticks, op->bytes, op->what, {0}};
	show();
}

static int start_event(void *context, void **handle, unsigned type, const struct event *event)
{
	struct op *op = NULL;

	*handle = NULL;
	if (!context)
		return SUCCESS;
	pthread_mutex_lock(&lock);
	if (type == COLL) {
		*handle = enqueued_coll(context, event);
	} else if (type == P2P) {
		*handle = enqueued(context, event->p2p.func, event->p2p.peer,
				   bytes_of(event->p2p.count, event->p2p.datatype), event->p2p.channels);
	} else if (type == KERNEL_CHANNEL && (op = event->parent) && op->comm) {
		if (op->begun++ == 0)
			entered(op);
		*handle = (char *)op + 1; /* odd: a channel's */
	}
	pthread_mutex_unlock(&lock);
	return SUCCESS;
}

static int start_4(void *context, void **handle, const struct event *event)
{
	return start_event(context, handle, *(const uint8_t *)&event->type, event);
}

static int start_5(void *context, void **handle, const struct event *event)
{
	return start_event(context, handle, event->type > KERNEL_CHANNEL ? 0 : (unsigned)event->type, event);
}

static int stop_event(void *handle)
{
	struct op *op = (struct op *)((uintptr_t)handle & ~(uintptr_t)1);

	if (!op)
		return SUCCESS;
	pthread_mutex_lock(&lock);
	if (handle == op)
		op->launched = 1;
	else if (op->comm && ++op->ended == op->channels)
		left(op);
	if (op->comm && op->launched && op->ended >= op->channels)
		forget(op);
	pthread_mutex_unlock(&lock);
	return SUCCESS;
}

static int record_state(void *handle, int state, void *arguments)
{
	(void)handle, (void)state, (void)arguments;
	return SUCCESS;
}

static int init_5(void **context, uint64_t id, int *events, const char *name, int nodes, int ranks, int rank,
		  void *log)
{
	int good;

	(void)name, (void)nodes, (void)log;
	pthread_mutex_lock(&lock);
	good = block && block->head.launch == launch_number() ? 1 : begin(rank, ranks);
	if (good) {
		*context = add_comm(id, rank, ranks);
		*events = COLL | P2P | KERNEL_CHANNEL;
	}
	pthread_mutex_unlock(&lock);
	return good ? SUCCESS : SYSTEM_ERROR;
}

static int init_4(void **context, int *events, const char *name, uint64_t id, int nodes, int ranks, int rank,
		  void *log)
{
	return init_5(context, id, events, name, nodes, ranks, rank, log);
}

/* Operations of it that never ended (it was aborted) are forgotten. */
static int finalize(void *context)
{
	struct comm *comm = context;

	pthread_mutex_lock(&lock);
	for (struct op *op = ops; comm && op < ops + OPS_AT_ONCE; op++)
		if (op->comm == comm) {
			off_gpu(op);
			forget(op);
		}
	if (comm && comm->at < TRACK_COMMS - 1) {
		block->comms[comm->at].freed = 1;
		comm->used = 0;
	}
	if (block)
		show();
	pthread_mutex_unlock(&lock);
	return SUCCESS;
}

static __attribute__((destructor)) void end(void)
{
	if (block && block->head.pid == (uint32_t)getpid())
		block->head.state = TRACK_FINALIZED;
}

/* Both versions' tables have the same five functions; these two differ. */
EXPORT const struct {
	const char *name;
	int (*init)(void **, int *, const char *, uint64_t, int, int, int, void *);
	int (*start)(void *, void **, const struct event *);
	int (*stop)(void *);
	int (*record)(void *, int, void *);
	int (*finalize)(void *);
} ncclProfiler_v4 = {"fabricctl", init_4, start_4, stop_event, record_state, finalize};

EXPORT const struct {
	const char *name;
	int (*init)(void **, uint64_t, int *, const char *, int, int, int, void *);
	int (*start)(void *, void **, const struct event *);
	int (*stop)(void *);
	int (*record)(void *, int, void *);
	int (*finalize)(void *);
} ncclProfiler_v5 = {"fabricctl", init_5, start_5, stop_event, record_state, finalize};
