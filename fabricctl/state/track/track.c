/* libfabrictrack.so, preloaded: stamps every MPI call of a rank into its shared block (track.h).
 *
 * It is built without any mpi.h: handles are integers (MPICH and its kin) or pointers (Open MPI)
 * and travel in whole registers either way, so one library serves every MPI. MPI is found among
 * the loaded objects at the first call. docs/decisions/0030 tells why that holds. */
#include "clocks.h"
#include "find.h"
#include "home.h"
#include "track.h"

#include <limits.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define EXPORT __attribute__((visibility("default")))
#define UNLIKELY(x) __builtin_expect(!!(x), 0)
#define ALWAYS __attribute__((always_inline))
#define SLOW __attribute__((noinline, cold))
#define TLS __thread __attribute__((tls_model("initial-exec")))
#define SLOTS 256		/* of the table of handles; a power of two, above TRACK_COMMS */
#define TYPES 64
#define ERR_COUNT 2 /* MPI_ERR_COUNT of Open MPI and of MPICH's ABI */

static struct track_block fallback; /* until MPI_Init, and where no directory is given */
static struct track_block *block = &fallback;
static TLS int owner;	  /* this thread called MPI_Init */
static TLS int depth = 1; /* of calls within calls; never 0 in a thread that is not the owner */
static uint64_t handle_mask = UINT64_MAX; /* of what a handle occupies in a register */
static int is_open_mpi;
static uint64_t last_handle = UINT64_MAX, world_handle, null_handle;
static uint32_t last_slot, used_comms;
static word world_group;
static uint64_t handles[TRACK_COMMS];
static int without_mpi;
static struct {
	uint64_t handle;
	uint32_t slot; /* + 1; 0: free */
} slots[SLOTS];
static struct {
	uint64_t handle;
	uint64_t size;
} types[TYPES];

/* --- communicators --------------------------------------------------------------------------- */

static uint64_t mix(uint64_t a, uint64_t b)
{
	a ^= b + 0x9e3779b97f4a7c15ULL + (a << 6) + (a >> 2);
	a *= 0xff51afd7ed558ccdULL;
	return a ^ (a >> 33);
}

static uint32_t place_of(uint64_t handle)
{
	return (uint32_t)((handle >> 4) ^ (handle >> 12) ^ handle) & (SLOTS - 1);
}

static void put_slot(uint32_t slot)
{
	uint32_t at = place_of(handles[slot]);

	while (slots[at].slot && slots[at].handle != handles[slot])
		at = (at + 1) & (SLOTS - 1);
	slots[at].handle = handles[slot];
	slots[at].slot = slot + 1;
}

static uint32_t add_comm(uint64_t handle, uint64_t id)
{
	uint32_t slot = used_comms;
	struct track_comm *comm;
	int size = 0, rank = -1;

	for (uint32_t i = 0; i < used_comms; i++) /* one that was freed makes room */
		if (block->comms[i].freed) {
			slot = i;
			break;
		}
	if (slot >= TRACK_COMMS - 1)
		return TRACK_COMMS - 1; /* all others share the last, whose id is 0 */
	if (slot == used_comms)
		used_comms++;
	handles[slot] = handle;
	put_slot(slot);
	comm = &block->comms[slot];
	memset(comm, 0, sizeof *comm);
	call("PMPI_Comm_size", (word)handle, (word)&size, 0, 0, 0);
	call("PMPI_Comm_rank", (word)handle, (word)&rank, 0, 0, 0);
	comm->size = (uint32_t)size;
	comm->rank = rank;
	__atomic_store_n(&comm->id, id, __ATOMIC_RELEASE);
	return slot;
}

static __attribute__((cold, noinline)) uint32_t find_comm(uint64_t handle)
{
	uint32_t at = place_of(handle);

	for (; slots[at].slot; at = (at + 1) & (SLOTS - 1))
		if (slots[at].handle == handle)
			return slots[at].slot - 1;
	return handle == null_handle ? TRACK_COMMS - 1 : add_comm(handle, 0);
}

static inline uint32_t comm_of(uint64_t handle)
{
	handle &= handle_mask;
	if (UNLIKELY(handle != last_handle)) {
		last_slot = find_comm(handle);
		last_handle = handle;
	}
	return last_slot;
}

static uint64_t handle_at(word address)
{
	return is_open_mpi ? *(uint64_t *)address : (uint64_t) * (uint32_t *)address;
}

/* Every member finds the same id: from the parent's, how many were made of it before, and who is
 * the new one's rank 0. */
static void made_comm(uint32_t parent, uint64_t handle)
{
	struct track_comm *from = &block->comms[parent];
	uint64_t id = mix(from->id, ++from->made);
	word group = 0;
	int zero = 0, first = -1, size = 0;

	if (handle == null_handle)
		return;
	call("PMPI_Comm_group", (word)handle, (word)&group, 0, 0, 0);
	call("PMPI_Group_translate_ranks", group, 1, (word)&zero, world_group, (word)&first);
	call("PMPI_Group_free", (word)&group, 0, 0, 0, 0);
	call("PMPI_Comm_size", (word)handle, (word)&size, 0, 0, 0);
	add_comm(handle, mix(mix(id, (uint64_t)first + 3), (uint64_t)size) | 1ULL << 63);
	last_handle = UINT64_MAX;
}

static void forget_comm(uint64_t handle)
{
	uint32_t slot = find_comm(handle & handle_mask);

	last_handle = UINT64_MAX;
	if (slot >= used_comms)
		return;
	block->comms[slot].freed = 1;
	memset(slots, 0, sizeof slots);
	for (uint32_t i = 0; i < used_comms; i++)
		if (!block->comms[i].freed)
			put_slot(i);
}

/* --- datatypes ------------------------------------------------------------------------------- */

static __attribute__((cold, noinline)) uint64_t ask_size(uint64_t handle, uint32_t at)
{
	int size = 0;

	call("PMPI_Type_size", (word)handle, (word)&size, 0, 0, 0);
	types[at].handle = handle;
	types[at].size = size > 0 ? (uint64_t)size : 0;
	return types[at].size;
}

static inline uint32_t place_of_type(uint64_t handle)
{
	return (uint32_t)(handle >> 6 ^ handle) & (TYPES - 1);
}

static inline uint64_t size_of(uint64_t handle)
{
	uint32_t at;

	handle &= handle_mask;
	at = place_of_type(handle);
	return types[at].handle == handle ? types[at].size : ask_size(handle, at);
}

/* --- the block ------------------------------------------------------------------------------- */

static void find_handles(void)
{
	void *world = find_symbol("ompi_mpi_comm_world");

	is_open_mpi = world != NULL;
	if (is_open_mpi) {
		world_handle = (uint64_t)world;
		null_handle = (uint64_t)find_symbol("ompi_mpi_comm_null");
		return;
	}
	handle_mask = UINT32_MAX;
	world_handle = 0x44000000; /* MPICH's ABI: mpi.h of MPICH, Intel MPI, Cray MPICH */
	null_handle = 0x04000000;
}

static struct track_header *begin_head(const char *library)
{
	struct track_block *given = new_block("");

	block = given ? given : &fallback;
	return fill_head(block, library);
}

static void opened(struct track_header *head)
{
	head->state = TRACK_RUNNING;
	owner = 1;
	depth = 0;
	memcpy(head->magic, TRACK_MAGIC, sizeof head->magic);
}

static void begin(void)
{
	struct track_header *head;
	uint64_t self;

	find_handles();
	head = begin_head(is_open_mpi ? "Open MPI" : "MPICH ABI");
	call("PMPI_Comm_rank", (word)world_handle, (word)&head->rank, 0, 0, 0);
	call("PMPI_Comm_size", (word)world_handle, (word)&head->ranks, 0, 0, 0);
	call("PMPI_Comm_group", (word)world_handle, (word)&world_group, 0, 0, 0);
	used_comms = 0;
	add_comm(world_handle, 1);
	self = is_open_mpi ? (uint64_t)find_symbol("ompi_mpi_comm_self") : 0x44000001;
	add_comm(self, 2);
	opened(head);
}

/* --- the stamps ------------------------------------------------------------------------------ */

/* Two stores, not four: what is read again in other pieces than it was written in has to wait until
 * it has left the store buffer. */
static inline void put_what(struct track_what *to, uint32_t op, int32_t peer, uint32_t comm,
			    uint32_t coll)
{
	uint64_t words[2] = {
#if __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__
		op | (uint64_t)(uint32_t)peer << 32, comm | (uint64_t)coll << 32
#else
		(uint64_t)op << 32 | (uint32_t)peer, (uint64_t)comm << 32 | coll
#endif
	};

	memcpy(to, &words[0], sizeof words[0]);
	memcpy((char *)to + sizeof words[0], &words[1], sizeof words[1]);
}

/* What a wrapper needs to stamp a call without asking anybody; else its slow form is taken. */
static inline int is_stale(uint64_t ticks)
{
	return ticks - block->head.last_ticks > PAIR_TICKS;
}

static inline int is_last_comm(uint64_t handle)
{
	return (handle & handle_mask) == last_handle;
}

static inline int is_known_type(uint64_t handle)
{
	handle &= handle_mask;
	return types[place_of_type(handle)].handle == handle;
}

static inline ALWAYS void stamp_enter_at(uint64_t ticks, uint32_t op, uint32_t comm, int32_t peer,
					 uint64_t bytes, int collective)
{
	struct track_now *now = &block->now;
	uint32_t coll = 0;

	if (collective) {
		struct track_comm *to = &block->comms[comm];

		to->recent = to->recent << 8 | (op & (TRACK_OPS - 1));
		coll = ++to->colls;
	}
	put_what(&now->what, op, peer, comm, coll);
	now->bytes = bytes;
	now->enter_ticks = ticks;
	__atomic_store_n(&now->calls, now->calls + 1, __ATOMIC_RELEASE);
}

static void stamp_enter(uint32_t op, uint32_t comm, int32_t peer, uint64_t bytes, int collective)
{
	uint64_t ticks = ticks_now();

	stamp_enter_at(ticks, op, comm, peer, bytes, collective);
	if (UNLIKELY(is_stale(ticks)))
		pair_clocks(&block->head);
}

static inline ALWAYS void stamp_exit_at(uint64_t ticks, uint32_t op, int quiet)
{
	struct track_now *now = &block->now;
	struct track_op *sum = &block->ops[op & (TRACK_OPS - 1)];
	uint64_t begun = now->enter_ticks, took = ticks - begun, calls = now->calls + 1;
	uint64_t bytes = now->bytes;

	now->exit_ticks = ticks;
	__atomic_store_n(&now->calls, calls, __ATOMIC_RELEASE);
	sum->calls++;
	sum->ticks += took;
	sum->bytes += bytes;
	if (UNLIKELY(took > sum->most_ticks))
		sum->most_ticks = took;
	if (!quiet) {
		struct track_record *record = &block->ring[(calls >> 1) & (TRACK_RING - 1)];
		uint64_t half;

		record->calls = calls;
		record->enter_ticks = begun;
		record->exit_ticks = ticks;
		record->bytes = bytes;
		memcpy(&half, &now->what, sizeof half);
		memcpy(&record->what, &half, sizeof half);
		memcpy(&half, &now->what.comm, sizeof half);
		memcpy(&record->what.comm, &half, sizeof half);
	}
}

static void stamp_exit(uint32_t op, int quiet)
{
	stamp_exit_at(ticks_now(), op, quiet);
}

EXPORT void fabric_track_step(uint64_t n)
{
	block->now.steps = n;
	block->now.step_ticks = ticks_now();
}

static uint64_t phase_named(const char *name)
{
	struct track_phase *last = &block->phases[TRACK_PHASES - 1];

	for (uint64_t i = 0; i < TRACK_PHASES - 1; i++) {
		struct track_phase *phase = &block->phases[i];

		if (!*phase->name)
			snprintf(phase->name, sizeof phase->name, "%s", name);
		if (!strncmp(phase->name, name, sizeof phase->name - 1))
			return i + 1;
	}
	snprintf(last->name, sizeof last->name, "other");
	return TRACK_PHASES;
}

EXPORT void fabric_track_mark(const char *name)
{
	struct track_now *now = &block->now;
	uint64_t ticks = ticks_now(), was = now->phase;

	/* A reader that comes between has no phase, or the new one from its begin: never one twice. */
	__atomic_store_n(&now->phase, 0, __ATOMIC_RELEASE);
	if (was)
		block->phases[was - 1].ticks += ticks - now->phase_ticks;
	if (!name || !*name)
		return;
	was = phase_named(name);
	block->phases[was - 1].entered++;
	now->phase_ticks = ticks;
	__atomic_store_n(&now->phase, was, __ATOMIC_RELEASE);
}

EXPORT void fabric_track_enter(uint32_t op, int32_t peer, uint64_t bytes)
{
	if (owner && depth++ == 0)
		stamp_enter(op & (TRACK_OPS - 1), 0, peer, bytes, 0);
}

EXPORT void fabric_track_exit(void)
{
	if (owner && --depth == 0)
		stamp_exit(block->now.what.op, 0);
}

static void set_ranks(struct track_block *to, uint32_t rank, uint32_t ranks)
{
	to->head.rank = (int32_t)rank, to->head.ranks = (int32_t)ranks;
	to->comms[0].size = ranks, to->comms[0].rank = (int32_t)rank;
	to->comms[0].id = 1; /* as MPI_COMM_WORLD's */
}

/* A program without MPI: one block, and one communicator of all its ranks. Again, when the process
 * is one of a new group: as if it had begun now, under another launch. */
EXPORT void fabric_track_begin(uint32_t rank, uint32_t ranks, const char *library)
{
	struct track_header *head;

	if (block == &fallback) {
		head = begin_head(library);
		set_ranks(block, rank, ranks);
		without_mpi = 1;
		opened(head);
	} else if (without_mpi) {
		head = &block->head;
		memset(head->magic, 0, sizeof head->magic); /* nobody reads what is half anew */
		__atomic_thread_fence(__ATOMIC_SEQ_CST);
		memset(&block->now, 0, sizeof *block - offsetof(struct track_block, now));
		head->launch = launch_number();
		set_ranks(block, rank, ranks);
		__atomic_thread_fence(__ATOMIC_SEQ_CST);
		opened(head);
	}
}

/* A collective of all ranks; it ends by fabric_track_exit. */
EXPORT void fabric_track_meet(uint32_t op, int32_t root, uint64_t bytes)
{
	if (owner && depth++ == 0)
		stamp_enter(op & (TRACK_OPS - 1), 0, root, bytes, 1);
}

EXPORT void fabric_track_end(void)
{
	if (owner)
		block->head.state = TRACK_FINALIZED;
}

/* What a call means beside its stamps; `comm` is the parent's place, `made` the new handle. */
static void after_init(void)
{
	if (block == &fallback)
		begin();
}

static void before_end(enum track_state state)
{
	block->head.state = state;
}

static void flush_types(void)
{
	memset(types, 0, sizeof types);
}

static word f2c(const char *converter, any_function *to, word fortran)
{
	if (!is_open_mpi)
		return fortran;
	return (*to ? *to : resolve(converter, converter, to))(fortran);
}

static any_function comm_f2c, type_f2c;
#define COMM_F(address) ((uint64_t)f2c("PMPI_Comm_f2c", &comm_f2c, *(int *)(address)))
#define TYPE_F(address) ((uint64_t)f2c("PMPI_Type_f2c", &type_f2c, *(int *)(address)))

#include "wrappers.inc"
