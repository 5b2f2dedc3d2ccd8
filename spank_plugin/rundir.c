/* The node's run_dir (docs/envelope.md), as a step sees it.
 *
 * run_dir, jobs/, requests/ and steps/ are root's; jobs/<job>/ and the files in it belong to an
 * unprivileged agent. So every step down goes by directory descriptor and never through a link,
 * sizes are capped, owners are checked where root writes, and nothing is waited for. */
#include "fabric.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#define DIRECTORY (O_PATH | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC)

/* A directory that root (in tests: we) owns and nobody else can write to; -1 with errno. */
static int open_roots(int at, const char *name)
{
	int fd = openat(at, name, DIRECTORY);
	struct stat st;

	if (fd < 0)
		return -1;
	if (fstat(fd, &st) || (st.st_uid && st.st_uid != geteuid()) || st.st_mode & 022) {
		close(fd);
		errno = EPERM;
		return -1;
	}
	return fd;
}

static void close_fd(int fd)
{
	int saved = errno;

	if (fd >= 0)
		close(fd);
	errno = saved;
}

static int open_below(int run, const char *directory, const char *name, int flags)
{
	int parent = open_roots(run, directory), fd;

	if (parent < 0)
		return -1;
	fd = openat(parent, name, flags | O_NOFOLLOW | O_CLOEXEC);
	close_fd(parent);
	return fd;
}

int rundir_open(const char *run_dir)
{
	return open_roots(AT_FDCWD, run_dir);
}

int rundir_open_job(int run, uint32_t job)
{
	char name[16];

	snprintf(name, sizeof name, "%u", job);
	return open_below(run, "jobs", name, O_PATH | O_DIRECTORY);
}

int rundir_open_paths(int run)
{
	return open_roots(run, "paths");
}

int rundir_open_job_paths(int run, uint32_t job)
{
	int paths = rundir_open_paths(run), fd = -1;
	char name[16];

	if (paths < 0)
		return -1;
	snprintf(name, sizeof name, "%u", job);
	fd = open_roots(paths, name);
	close_fd(paths);
	return fd;
}

char *rundir_read(int at, const char *name, size_t *length)
{
	/* Not blocking: a fifo in the file's place must not hold the step up. */
	int fd = openat(at, name, O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_NOCTTY | O_CLOEXEC);
	char *text = NULL;
	struct stat st;
	ssize_t got = -1;

	*length = 0;
	if (fd < 0)
		return NULL;
	errno = EINVAL;
	if (fstat(fd, &st) || !S_ISREG(st.st_mode) || !(text = malloc(FIELDS_MAX_BYTES + 2)))
		goto out;
	/* One byte more than is allowed, so that fields_decode sees and refuses what is longer. */
	while ((got = read(fd, text + *length, FIELDS_MAX_BYTES + 1 - *length)) > 0)
		*length += (size_t)got;
	text[*length] = '\0';
out:
	if (got < 0) {
		free(text);
		text = NULL;
	}
	close_fd(fd);
	return text;
}

bool rundir_service_lives(int run)
{
	int fd = openat(run, "node.lock", O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC);
	bool lives;

	if (fd < 0)
		return false;
	lives = flock(fd, LOCK_SH | LOCK_NB) && errno == EWOULDBLOCK;
	close(fd);
	return lives;
}

bool rundir_is_of(int run, uint32_t job, uid_t uid)
{
	int job_dir = rundir_open_job(run, job);
	struct stat st;
	bool is_of;

	if (job_dir < 0)
		return false;
	/* Root gave the envelope to the job's user; the directory is the agent's. */
	is_of = fstatat(job_dir, "envelope", &st, AT_SYMLINK_NOFOLLOW) == 0 && st.st_uid == uid;
	close(job_dir);
	return is_of;
}

time_t rundir_announced_s(int run, uint32_t job)
{
	int requests = open_roots(run, "requests"), job_dir;
	time_t since = 0;
	struct stat st;
	char name[24];

	snprintf(name, sizeof name, "%u.start", job);
	if (requests >= 0 && fstatat(requests, name, &st, AT_SYMLINK_NOFOLLOW) == 0)
		since = st.st_mtime;
	/* After it: the service makes the directory before it takes the request away. */
	job_dir = rundir_open_job(run, job);
	if (job_dir >= 0 && fstat(job_dir, &st) == 0)
		since = st.st_mtime;
	close_fd(requests);
	close_fd(job_dir);
	return since;
}

/* steps/<job>/ below run_dir, made if need be. */
static int open_steps(int run, uint32_t job)
{
	int steps = open_roots(run, "steps"), fd = -1;
	char name[16];

	if (steps < 0)
		return -1;
	snprintf(name, sizeof name, "%u", job);
	if (mkdirat(steps, name, 0755) == 0 || errno == EEXIST)
		fd = open_roots(steps, name);
	close_fd(steps);
	return fd;
}

int rundir_mark_step(int run, uint32_t job, const char *step)
{
	int steps = open_steps(run, job), fd = -1, rc = -1;

	if (steps < 0)
		goto out;
	fd = openat(steps, step, O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0644);
	/* A requeued job's steps have the same numbers: the mark becomes that of the new attempt,
	 * and outlives the end of the one before. */
	if (fd >= 0 || (errno == EEXIST && !utimensat(steps, step, NULL, AT_SYMLINK_NOFOLLOW)))
		rc = 0;
out:
	close_fd(fd);
	close_fd(steps);
	return rc;
}
