/* Is the job protected on this node, and on its others? What docs/envelope.md, "Never silently
 * unprotected", says, from the node's run_dir. A few system calls, no waiting. */
#include "fabric.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define NS_PER_S INT64_C(1000000000)
/* Agents write at least every 5 s: three missed writes. */
#define STALE_NS (15 * NS_PER_S)
/* An agent's start is 1 to 2 s of work; on a busy node more. */
#define START_S 10
/* No list is longer; counts stop here (MAX_SLURM_NODES). */
#define HOSTS_MAX 65536

static void not_here(struct protect *view, const char *why)
{
	view->here = PROTECT_NOT;
	fields_harmless(view->why, sizeof view->why, why, strlen(why));
}

static uint64_t at_most(uint64_t count)
{
	return count < HOSTS_MAX ? count : HOSTS_MAX;
}

/* Numbers in "[1-3,7]"; *at is moved to its end. */
static uint64_t count_brackets(const char **at)
{
	uint64_t count = 0;

	do {
		char *end;
		uint64_t first = strtoull(++*at, &end, 10), last = first;

		if (*end == '-')
			last = strtoull(end + 1, &end, 10);
		count = at_most(count + (last > first ? at_most(last - first) : 0) + 1);
		*at += strcspn(*at, ",]");
	} while (**at == ',');
	return count;
}

/* How many hosts a list names, or more, whatever it holds. */
static uint32_t count_hosts(const char *list)
{
	uint64_t count = 0, product = 1;

	if (!*list)
		return 0;
	for (const char *at = list; *at; at += *at != '\0') {
		if (*at == '[') {
			product = at_most(product * count_brackets(&at));
		} else if (*at == ',') {
			count = at_most(count + product);
			product = 1;
		}
	}
	return (uint32_t)at_most(count + product);
}

static uint32_t take_list(char to[PROTECT_LIST_SIZE], const char *list)
{
	size_t length = strlen(list);

	fields_harmless(to, PROTECT_LIST_SIZE, list, length);
	if (length >= PROTECT_LIST_SIZE)
		memcpy(to + PROTECT_LIST_SIZE - 4, "...", 4);
	return count_hosts(list);
}

static int64_t mono_now_ns(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return now.tv_sec * NS_PER_S + now.tv_nsec;
}

static void take_age(struct protect *view, const char *updated)
{
	int64_t age_ns = mono_now_ns() - strtoll(updated, NULL, 10);
	char why[60];

	if (age_ns < 0) {
		not_here(view, "its agent's status file is from another boot");
	} else if (age_ns > STALE_NS) {
		snprintf(why, sizeof why, "its agent was last heard %" PRId64 " s ago",
			 age_ns / NS_PER_S);
		not_here(view, why);
	}
}

static void take_status(struct protect *view, const struct fields *fields)
{
	const char *version = fields_get(fields, "v"), *settled = fields_get(fields, "settled");
	const char *updated = fields_get(fields, "updated_mono_ns");
	const char *problem = fields_get(fields, "problem"), *notice = fields_get(fields, "notice");
	const char *missing = fields_get(fields, "missing");
	const char *unplugged = fields_get(fields, "unplugged");

	if (!version || strcmp(version, "1") || !updated || !*updated ||
	    updated[strspn(updated, "0123456789")]) {
		not_here(view, "its agent's status file is damaged");
		return;
	}
	take_age(view, updated);
	if (view->here == PROTECT_NOT)
		return;
	if (problem)
		not_here(view, problem);
	if (notice)
		fields_harmless(view->notice, sizeof view->notice, notice, strlen(notice));
	if (!settled || strcmp(settled, "1"))
		return;
	view->others = take_list(view->missing, missing ? missing : "");
	view->others += take_list(view->unplugged, unplugged ? unplugged : "");
}

/* Without a status: it may still come, or never. */
static void no_status(struct protect *view, int run, uint32_t job)
{
	time_t since_s = rundir_announced_s(run, job);

	if (!rundir_service_lives(run))
		not_here(view, "its node service is not running");
	else if (!since_s)
		not_here(view, "its prolog did not announce the job");
	else if (time(NULL) - since_s > START_S)
		not_here(view, "its agent did not start");
	else
		view->here = PROTECT_STARTING;
}

void protect_look(struct protect *view, const char *run_dir, uint32_t job)
{
	int run = rundir_open(run_dir), job_dir = -1;
	char *text = NULL, why[FIELDS_WHY_SIZE];
	struct fields fields;
	size_t length;

	memset(view, 0, sizeof *view);
	if (run < 0) {
		not_here(view, errno == EPERM
				       ? "its run_dir is not root's alone"
				       : "it has no fabricctl, or its node service never ran");
		goto out;
	}
	job_dir = rundir_open_job(run, job);
	text = job_dir < 0 ? NULL : rundir_read(job_dir, "status", &length);
	if (!text)
		no_status(view, run, job);
	else if (fields_decode(&fields, text, length, '\n', why))
		not_here(view, "its agent's status file is damaged");
	else
		take_status(view, &fields);
out:
	free(text);
	if (job_dir >= 0)
		close(job_dir);
	if (run >= 0)
		close(run);
}
