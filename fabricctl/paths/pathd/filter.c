#include "filter.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/bpf.h>
#include <stddef.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#define PRIORITY 6 /* sockets.c */

static int bpf(int what, union bpf_attr *attr)
{
	return (int)syscall(SYS_bpf, what, attr, sizeof(*attr));
}

static int load(const struct bpf_insn *code, size_t count)
{
	union bpf_attr attr;

	memset(&attr, 0, sizeof(attr));
	attr.prog_type = BPF_PROG_TYPE_SCHED_CLS;
	attr.insns = (uint64_t)(uintptr_t)code;
	attr.insn_cnt = (uint32_t)count;
	attr.license = (uint64_t)(uintptr_t) "Dual BSD/GPL";
	memcpy(attr.prog_name, "fabric_share", 13);
	return bpf(BPF_PROG_LOAD, &attr);
}

/* Memory of ours that a program reads: written to without a system call, so that nothing that drops
 * its capabilities needs one (Linux 5.5). */
struct filter_group *filter_group_make(int *map)
{
	union bpf_attr attr;
	void *group;

	memset(&attr, 0, sizeof(attr));
	attr.map_type = BPF_MAP_TYPE_ARRAY;
	attr.key_size = sizeof(uint32_t);
	attr.value_size = sizeof(struct filter_group);
	attr.max_entries = 1;
	attr.map_flags = BPF_F_MMAPABLE;
	*map = bpf(BPF_MAP_CREATE, &attr);
	if (*map < 0)
		return NULL;
	group = mmap(NULL, (size_t)sysconf(_SC_PAGESIZE), PROT_READ | PROT_WRITE, MAP_SHARED, *map, 0);
	if (group != MAP_FAILED)
		return group;
	close(*map);
	*map = -1;
	return NULL;
}

void filter_group_find(struct filter_group *group, const char *path)
{
	union {
		struct file_handle head;
		char room[sizeof(struct file_handle) + sizeof(uint64_t)];
	} handle = {.head.handle_bytes = sizeof(uint64_t)};
	uint64_t id = 0;
	int mount;

	/* A group's id is what its handle has (kernfs_node_id in the kernel). */
	if (name_to_handle_at(AT_FDCWD, path, &handle.head, &mount, 0) == 0 &&
	    handle.head.handle_bytes == sizeof(id))
		memcpy(&id, handle.head.f_handle, sizeof(id));
	group->id = id;
	if (id)
		group->seen = 1;
}

#define CALL(helper) {BPF_JMP | BPF_CALL, 0, 0, 0, helper}
#define COPY(to, from) {BPF_ALU64 | BPF_MOV | BPF_X, to, from, 0, 0}
#define UNLESS(reg, value, skip) {BPF_JMP32 | BPF_JNE | BPF_K, reg, 0, skip, (int32_t)(value)}
#define UNLESS_SAME(reg, other, skip) {BPF_JMP | BPF_JNE | BPF_X, reg, other, skip, 0}
#define IF_ZERO(reg, skip) {BPF_JMP | BPF_JEQ | BPF_K, reg, 0, skip, 0}
#define READ(size, to, from, at) {BPF_LDX | BPF_MEM | (size), to, from, (int16_t)(at), 0}
#define ADDRESS(reg, map) {BPF_LD | BPF_IMM | BPF_DW, reg, BPF_PSEUDO_MAP_VALUE, 0, map}, {0, 0, 0, 0, 0}
#define RETURN(value) \
	{BPF_ALU | BPF_MOV | BPF_K, BPF_REG_0, 0, 0, (int32_t)(value)}, \
		      {BPF_JMP | BPF_EXIT, 0, 0, 0, 0}
#define COUNT(code) (sizeof(code) / sizeof((code)[0]))

/* A filter's answer is the class; 0: ask the next filter. */
static int load_by_user(unsigned uid, uint32_t class)
{
	struct bpf_insn code[] = {
		CALL(BPF_FUNC_get_socket_uid),
		UNLESS(BPF_REG_0, uid, 2),
		RETURN(class),
		RETURN(0),
	};

	return load(code, COUNT(code));
}

/* The socket belongs to the group in which it was made. */
int filter_load_job(unsigned uid, uint32_t class, int map)
{
	struct bpf_insn code[] = {
		COPY(BPF_REG_6, BPF_REG_1),
		CALL(BPF_FUNC_get_socket_uid),
		UNLESS(BPF_REG_0, uid, 12),
		ADDRESS(BPF_REG_7, map),
		READ(BPF_W, BPF_REG_2, BPF_REG_7, offsetof(struct filter_group, seen)),
		IF_ZERO(BPF_REG_2, 6),
		READ(BPF_DW, BPF_REG_8, BPF_REG_7, offsetof(struct filter_group, id)),
		IF_ZERO(BPF_REG_8, 6),
		COPY(BPF_REG_1, BPF_REG_6),
		READ(BPF_W, BPF_REG_2, BPF_REG_7, offsetof(struct filter_group, level)),
		CALL(BPF_FUNC_skb_ancestor_cgroup_id),
		UNLESS_SAME(BPF_REG_0, BPF_REG_8, 2),
		RETURN(class),
		RETURN(0),
	};

	return map < 0 ? load_by_user(uid, class) : load(code, COUNT(code));
}

/* Anybody can ask for priority 6, so the uid is looked at as well. */
int filter_load_control(uint32_t class)
{
	struct bpf_insn code[] = {
		READ(BPF_W, BPF_REG_2, BPF_REG_1, offsetof(struct __sk_buff, priority)),
		UNLESS(BPF_REG_2, PRIORITY, 4),
		CALL(BPF_FUNC_get_socket_uid),
		UNLESS(BPF_REG_0, 0, 2),
		RETURN(class),
		RETURN(0),
	};

	return load(code, COUNT(code));
}
