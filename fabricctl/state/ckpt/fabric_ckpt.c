/* libfabricckpt.so: fabric_ckpt.h by way of `fabricctl ckpt`, started without fork: MPI libraries
 * do not like to be forked, posix_spawn does not copy the process. */
#include "fabric_ckpt.h"

#include <dirent.h>
#include <errno.h>
#include <inttypes.h>
#include <limits.h>
#include <spawn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#define EXPORT __attribute__((visibility("default")))

extern char **environ;
static char directory[PATH_MAX];

static const char *of_env(const char *name, const char *other)
{
	const char *value = getenv(name);

	return value && *value ? value : other;
}

/* Files, not directories, which nobody commits either. */
static void empty(const char *path)
{
	DIR *stream = opendir(path);
	struct dirent *entry;

	if (!stream)
		return;
	while ((entry = readdir(stream)))
		unlinkat(dirfd(stream), entry->d_name, 0);
	closedir(stream);
}

EXPORT const char *fabric_ckpt_dir(void)
{
	const char *given = of_env("FABRIC_CKPT_DIR", NULL), *rank = of_env("SLURM_PROCID", NULL);
	/* Starts by `fabricctl run` come one after the other: the next one takes the place of one that
	 * was killed, else each would leave its files behind. */
	const char *step = of_env("FABRIC_LAUNCH", NULL) ? "run" : of_env("SLURM_STEP_ID", "0");
	int length;

	if (*directory)
		return directory;
	if (!rank)
		rank = of_env("OMPI_COMM_WORLD_RANK", of_env("PMI_RANK", "0"));
	if (given)
		length = snprintf(directory, sizeof directory, "%s", given);
	else
		length = snprintf(directory, sizeof directory, "%s/fabric-ckpt-%s.%s.%s",
				  of_env("TMPDIR", "/tmp"), of_env("SLURM_JOB_ID", "0"), step, rank);
	if (length >= (int)sizeof directory) {
		errno = ENAMETOOLONG;
		goto fail;
	}
	if (mkdir(directory, 0700) != 0) {
		struct stat found;

		if (errno != EEXIST || lstat(directory, &found) != 0)
			goto fail;
		/* In /tmp anybody could have made it. */
		if (!S_ISDIR(found.st_mode) || found.st_uid != geteuid()) {
			errno = EPERM;
			goto fail;
		}
		if (!given && of_env("FABRIC_LAUNCH", NULL))
			empty(directory);
	}
	return directory;
fail:
	*directory = 0;
	return NULL;
}

/* The command's exit status, -1 when it could not be run; `answer` takes its first line. */
static int run(char *const argv[], char *answer, size_t room)
{
	posix_spawn_file_actions_t actions;
	int ends[2], status = -1;
	size_t got = 0;
	ssize_t count;
	pid_t child;

	if (pipe(ends) != 0)
		return -1;
	posix_spawn_file_actions_init(&actions);
	posix_spawn_file_actions_adddup2(&actions, ends[1], 1);
	posix_spawn_file_actions_addclose(&actions, ends[0]);
	posix_spawn_file_actions_addclose(&actions, ends[1]);
	errno = posix_spawnp(&child, argv[0], &actions, NULL, argv, environ);
	posix_spawn_file_actions_destroy(&actions);
	close(ends[1]);
	if (errno) {
		fprintf(stderr, "fabric: checkpoint: %s: %s\n", argv[0], strerror(errno));
		close(ends[0]);
		return -1;
	}
	while (got + 1 < room && (count = read(ends[0], answer + got, room - 1 - got)) != 0)
		if (count > 0)
			got += (size_t)count;
		else if (errno != EINTR)
			break;
	answer[got] = 0;
	close(ends[0]);
	while (waitpid(child, &status, 0) < 0)
		if (errno != EINTR)
			return -1;
	return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}

EXPORT int fabric_ckpt_commit(uint64_t step)
{
	char number[24], answer[64], *dir = (char *)fabric_ckpt_dir();
	char *argv[] = {(char *)of_env("FABRICCTL", "fabricctl"), "ckpt", "commit", number, "--dir",
			dir, NULL};

	if (!dir)
		return -1;
	snprintf(number, sizeof number, "%" PRIu64, step);
	return run(argv, answer, sizeof answer);
}

EXPORT int fabric_ckpt_restore(uint64_t *step, uint64_t before)
{
	char number[24], answer[64], *end, *dir = (char *)fabric_ckpt_dir();
	char *argv[] = {(char *)of_env("FABRICCTL", "fabricctl"), "ckpt", "restore", "--dir", dir,
			before ? "--before" : NULL, number, NULL};
	int status;

	*step = 0;
	if (!dir)
		return -1;
	snprintf(number, sizeof number, "%" PRIu64, before);
	status = run(argv, answer, sizeof answer);
	if (status != 0)
		return status;
	*step = strtoull(answer, &end, 10);
	return end == answer ? -1 : 0;
}

EXPORT int fabric_ckpt_done(void)
{
	char answer[64], *argv[] = {(char *)of_env("FABRICCTL", "fabricctl"), "ckpt", "done", NULL};
	int status = run(argv, answer, sizeof answer);

	if (status == 0 && *directory && !of_env("FABRIC_CKPT_DIR", NULL)) {
		empty(directory); /* a directory that was named is its user's */
		rmdir(directory);
		*directory = 0;
	}
	return status;
}
