#include "home.h"

#include "clocks.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

/* When this process was started, in clock ticks since boot (proc(5), starttime); 0: not known. */
static uint64_t own_start_ticks(void)
{
	char text[1024], *at;
	int fd = open("/proc/self/stat", O_RDONLY | O_CLOEXEC);
	ssize_t length = fd < 0 ? -1 : read(fd, text, sizeof text - 1);

	if (fd >= 0)
		close(fd);
	if (length <= 0)
		return 0;
	text[length] = '\0';
	at = strrchr(text, ')');
	for (int word_at = 2; at && word_at < 22; word_at++) /* starttime is field 22 of proc(5) */
		at = strchr(at + 1, ' ');
	return at ? strtoull(at, NULL, 10) : 0;
}

static int directory(char to[PATH_MAX])
{
	const char *given = getenv("FABRIC_TRACK_DIR"), *job = getenv("FABRIC_JOB_DIR"), *jobs;

	if (given && *given)
		return snprintf(to, PATH_MAX, "%s", given) < PATH_MAX - 64;
	jobs = job ? strstr(job, "/jobs/") : NULL;
	return jobs && snprintf(to, PATH_MAX, "%.*s/track/%s", (int)(jobs - job), job,
				jobs + 6) < PATH_MAX - 64;
}

/* As Slurm says it; "0" outside a step. */
static const char *step_name(void)
{
	const char *step = getenv("SLURM_STEP_ID");

	return step && strlen(step) < 20 && !step[strspn(step, "0123456789")] ? step : "0";
}

/* A step that srun began by itself, without `fabricctl run`: later ones have larger numbers, on all
 * nodes the same. mpirun starts its ranks in steps of its own, which say nothing of the sort. */
static const char *direct_step(void)
{
	const char *given = getenv("PMIX_NAMESPACE"); /* slurm.pmix.JOB.STEP */

	if (!given || strncmp(given, "slurm.pmix.", 11))
		given = getenv("PMI_JOBID"); /* JOB.STEP */
	return given && strrchr(given, '.') ? strrchr(given, '.') + 1 : "";
}

uint32_t launch_number(void)
{
	const char *given = getenv("FABRIC_LAUNCH");

	if (!given)
		given = direct_step();
	return *given && !given[strspn(given, "0123456789")] ? (uint32_t)strtoul(given, NULL, 10) : 0;
}

struct track_block *new_block(const char *more)
{
	char dir[PATH_MAX], path[PATH_MAX + 64];
	void *made = MAP_FAILED;
	int fd, error;

	if (directory(dir)) {
		snprintf(path, sizeof path, "%s/%s-%d%s.track", dir, step_name(), getpid(), more);
		unlink(path); /* of an earlier process with this number */
		fd = open(path, O_RDWR | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0644);
		if (fd >= 0 && fchmod(fd, 0644)) /* the directory says who comes that far */
			fprintf(stderr, "fabric: track: %s: %s\n", path, strerror(errno));
		/* fallocate: a file system that is full says so now, not by SIGBUS later. */
		error = fd < 0 ? errno : posix_fallocate(fd, 0, sizeof(struct track_block));
		if (!error)
			made = mmap(NULL, sizeof(struct track_block), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
		else if (error != ENOENT)
			fprintf(stderr, "fabric: track: %s: %s\n", path, strerror(error));
		if (fd >= 0)
			close(fd);
	}
	return made == MAP_FAILED ? NULL : made;
}

struct track_header *fill_head(struct track_block *made, const char *library)
{
	struct track_header *head = &made->head;

	memset(head->magic, 0, sizeof head->magic);
	__atomic_thread_fence(__ATOMIC_SEQ_CST);
	memset(made, 0, sizeof *made);
	head->version = TRACK_VERSION;
	head->size = sizeof *made;
	head->comms_at = offsetof(struct track_block, comms), head->comms = TRACK_COMMS;
	head->ops_at = offsetof(struct track_block, ops), head->ops = TRACK_OPS;
	head->ring_at = offsetof(struct track_block, ring), head->ring = TRACK_RING;
	head->pid = (uint32_t)getpid();
	head->start_ticks = own_start_ticks();
	head->launch = launch_number();
	head->ticks_source = TICKS_SOURCE;
	snprintf(head->step, sizeof head->step, "%s", step_name());
	snprintf(head->library, sizeof head->library, "%s", library);
	begin_clocks(head);
	return head;
}
