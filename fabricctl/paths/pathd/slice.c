#include "slice.h"

#include <errno.h>
#include <linux/if_ether.h>
#include <linux/pkt_cls.h>
#include <linux/pkt_sched.h>
#include <arpa/inet.h>
#include <stdio.h>
#include <string.h>

#define HANDLE SLICE_HANDLE
#define ROOT (HANDLE | 1)
#define REST (HANDLE | 2)
#define CONTROL SLICE_CONTROL
#define JOB(slot) SLICE_JOB(slot)
#define CONTROL_PREFERENCE 1
#define PREFERENCE(slot) (100 + (slot))

/* A millisecond of tokens: timers come late by that much at times, and tokens beyond the burst are
 * lost; never less than what TCP hands over at once. */
#define BURST_DIVISOR 1000
#define BURST_LEAST 66000
#define TICK_NS 64 /* PSCHED_SHIFT of linux/pkt_sched.h in the kernel */

static void begin(struct rtnl_msg *msg, uint16_t type, uint16_t flags, unsigned ifindex,
		  uint32_t parent, uint32_t handle, uint32_t info)
{
	struct tcmsg head = {
		.tcm_family = AF_UNSPEC,
		.tcm_ifindex = (int)ifindex,
		.tcm_parent = parent,
		.tcm_handle = handle,
		.tcm_info = info,
	};

	rtnl_begin(msg, type, flags, &head, sizeof(head));
}

struct look {
	unsigned ifindex;
	uint32_t handle;
	char kind[16];
	uint64_t slots; /* of the classes that are there */
};

static void see_queue(const struct nlmsghdr *head, void *arg)
{
	const struct tcmsg *tcm = NLMSG_DATA(head);
	const struct rtattr *table[TCA_MAX + 1];
	struct look *look = arg;

	if (tcm->tcm_ifindex != (int)look->ifindex || tcm->tcm_parent != TC_H_ROOT)
		return;
	rtnl_parse(head, sizeof(*tcm), table, TCA_MAX + 1);
	look->handle = tcm->tcm_handle;
	if (table[TCA_KIND])
		snprintf(look->kind, sizeof(look->kind), "%s", (const char *)RTA_DATA(table[TCA_KIND]));
}

static int dump(struct rtnl *rtnl, uint16_t type, struct look *look, rtnl_each *each)
{
	struct rtnl_msg msg;
	int error = -EINTR;

	for (int i = 0; i < 5 && error == -EINTR; i++) {
		begin(&msg, type, 0, look->ifindex, 0, 0, 0);
		error = rtnl_dump(rtnl, &msg, each, look);
	}
	return error;
}

int slice_look(struct rtnl *rtnl, unsigned ifindex, char before[16])
{
	struct look look = {.ifindex = ifindex};
	int error = dump(rtnl, RTM_GETQDISC, &look, see_queue);

	if (error)
		return error;
	snprintf(before, 16, "-");
	if (look.handle == HANDLE || TC_H_MAJ(look.handle) == 0)
		return 0;
	if (strcmp(look.kind, "pfifo_fast") != 0) /* the one kind without settings */
		return -EBUSY;
	snprintf(before, 16, "%s", look.kind);
	return 0;
}

static uint32_t ticks(uint64_t bytes, uint64_t bytes_per_s)
{
	uint64_t ns = bytes * 1000000000ull / bytes_per_s / TICK_NS;

	return ns < UINT32_MAX ? (uint32_t)ns : UINT32_MAX;
}

static struct tc_ratespec spec(uint64_t bytes_per_s)
{
	return (struct tc_ratespec){
		.linklayer = TC_LINKLAYER_ETHERNET,
		.overhead = 24, /* preamble, checksum and gap, which the packet's length leaves out */
		.rate = bytes_per_s < UINT32_MAX ? (uint32_t)bytes_per_s : UINT32_MAX,
	};
}

static uint64_t burst(uint64_t bytes_per_s)
{
	uint64_t bytes = bytes_per_s / BURST_DIVISOR;

	return bytes > BURST_LEAST ? bytes : BURST_LEAST;
}

static int put_class(struct rtnl *rtnl, unsigned ifindex, uint32_t parent, uint32_t handle,
		     uint64_t rate, uint64_t ceil, unsigned priority)
{
	struct tc_htb_opt opt = {
		.rate = spec(rate),
		.ceil = spec(ceil),
		.buffer = ticks(burst(rate), rate),
		.cbuffer = ticks(burst(ceil), ceil),
		/* What is over is lent in turns of this size: in proportion to the promises. */
		.quantum = rate / BURST_DIVISOR < 3000 ? 3000 : (uint32_t)(rate / BURST_DIVISOR),
		.prio = priority,
	};
	struct rtnl_msg msg;
	size_t nest;

	begin(&msg, RTM_NEWTCLASS, NLM_F_CREATE, ifindex, parent, handle, 0);
	rtnl_put_text(&msg, TCA_KIND, "htb");
	nest = rtnl_nest(&msg, TCA_OPTIONS);
	rtnl_put(&msg, TCA_HTB_PARMS, &opt, sizeof(opt));
	rtnl_put(&msg, TCA_HTB_RATE64, &rate, sizeof(rate));
	rtnl_put(&msg, TCA_HTB_CEIL64, &ceil, sizeof(ceil));
	rtnl_nest_end(&msg, nest);
	return rtnl_call(rtnl, &msg);
}

static uint64_t part(uint64_t bytes_per_s, unsigned permille)
{
	return bytes_per_s * permille / SHARE_WHOLE;
}

static int put_filter(struct rtnl *rtnl, unsigned ifindex, unsigned preference, int program)
{
	struct rtnl_msg msg;
	size_t nest;

	begin(&msg, RTM_NEWTFILTER, NLM_F_CREATE | NLM_F_REPLACE, ifindex, HANDLE, 1,
	      preference << 16 | htons(ETH_P_ALL));
	rtnl_put_text(&msg, TCA_KIND, "bpf");
	nest = rtnl_nest(&msg, TCA_OPTIONS);
	rtnl_put_u32(&msg, TCA_BPF_FD, (uint32_t)program);
	rtnl_put_text(&msg, TCA_BPF_NAME, "fabric");
	rtnl_nest_end(&msg, nest);
	return rtnl_call(rtnl, &msg);
}

static int put_queue(struct rtnl *rtnl, unsigned ifindex)
{
	struct tc_htb_glob glob = {.version = 3, .rate2quantum = 10, .defcls = TC_H_MIN(REST)};
	struct look look = {.ifindex = ifindex};
	struct rtnl_msg msg;
	size_t nest;
	int error = dump(rtnl, RTM_GETQDISC, &look, see_queue);

	if (error || look.handle == HANDLE)
		return error;
	begin(&msg, RTM_NEWQDISC, NLM_F_CREATE | NLM_F_REPLACE, ifindex, TC_H_ROOT, HANDLE, 0);
	rtnl_put_text(&msg, TCA_KIND, "htb");
	nest = rtnl_nest(&msg, TCA_OPTIONS);
	rtnl_put(&msg, TCA_HTB_INIT, &glob, sizeof(glob));
	rtnl_nest_end(&msg, nest);
	return rtnl_call(rtnl, &msg);
}

int slice_rail(struct rtnl *rtnl, unsigned ifindex, uint64_t bytes_per_s, uint16_t rest)
{
	int error = put_queue(rtnl, ifindex);

	if (!error)
		error = put_class(rtnl, ifindex, TC_H_ROOT, ROOT, bytes_per_s, bytes_per_s, 0);
	if (!error)
		error = put_class(rtnl, ifindex, ROOT, REST, part(bytes_per_s, rest), bytes_per_s,
				  SHARE_NORMAL + 1);
	if (!error)
		error = put_class(rtnl, ifindex, ROOT, CONTROL, part(bytes_per_s, SHARE_CONTROL),
				  part(bytes_per_s, SHARE_CONTROL_MOST), 0);
	return error;
}

int slice_grant(struct rtnl *rtnl, unsigned ifindex, uint64_t bytes_per_s, const struct grant *grant)
{
	return put_class(rtnl, ifindex, ROOT, JOB(grant->slot), part(bytes_per_s, grant->guarantee),
			 part(bytes_per_s, grant->ceiling), grant->class + 1u);
}

int slice_filters(struct rtnl *rtnl, unsigned ifindex, unsigned slot, int job, int control)
{
	int error = put_filter(rtnl, ifindex, CONTROL_PREFERENCE, control);

	return error ? error : put_filter(rtnl, ifindex, PREFERENCE(slot), job);
}

static void see_class(const struct nlmsghdr *head, void *arg)
{
	const struct tcmsg *tcm = NLMSG_DATA(head);
	struct look *look = arg;

	if (tcm->tcm_ifindex == (int)look->ifindex && tcm->tcm_handle >= JOB(0) &&
	    tcm->tcm_handle < JOB(64))
		look->slots |= 1ull << (tcm->tcm_handle - JOB(0));
}

int slice_prune(struct rtnl *rtnl, unsigned ifindex, uint64_t slots)
{
	struct look look = {.ifindex = ifindex};
	struct rtnl_msg msg;
	int error = dump(rtnl, RTM_GETTCLASS, &look, see_class);

	for (unsigned slot = 0; !error && slot < 64; slot++) {
		if (!(look.slots & ~slots & 1ull << slot))
			continue;
		begin(&msg, RTM_DELTFILTER, 0, ifindex, HANDLE, 0,
		      PREFERENCE(slot) << 16 | htons(ETH_P_ALL));
		error = rtnl_call(rtnl, &msg);
		if (error && error != -ENOENT)
			return error;
		begin(&msg, RTM_DELTCLASS, 0, ifindex, 0, JOB(slot), 0);
		error = rtnl_call(rtnl, &msg);
	}
	return error;
}

int slice_remove(struct rtnl *rtnl, unsigned ifindex, const char *before)
{
	struct look look = {.ifindex = ifindex};
	struct rtnl_msg msg;
	int error = dump(rtnl, RTM_GETQDISC, &look, see_queue);

	if (error || look.handle != HANDLE)
		return error; /* somebody put another there: not ours to touch */
	if (strcmp(before, "-") == 0) {
		begin(&msg, RTM_DELQDISC, 0, ifindex, TC_H_ROOT, 0, 0);
		return rtnl_call(rtnl, &msg);
	}
	begin(&msg, RTM_NEWQDISC, NLM_F_CREATE | NLM_F_REPLACE, ifindex, TC_H_ROOT, 0, 0);
	rtnl_put_text(&msg, TCA_KIND, before);
	return rtnl_call(rtnl, &msg);
}
