/* A lease is the file <clock>.lease, locked (flock) while a fabric-steer holds the clock. One that
 * nobody holds is of one that died: that of the same job goes on with it, `fabric-steer restore` puts
 * the clock back. What is about to be set is written down first. */
#include "steer.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#define TEXT 160
#define SAME 2 /* what the kernel reads back may differ in the last digit of struct timex */

int lease_write(const struct lease *lease)
{
	char text[TEXT + 1];
	int size = snprintf(
		text, sizeof(text), "job=%lu\npid=%d\nclock=%s\nfound=%ld\nours=%ld\nolder=%ld\nleft=%d\n",
		lease->job, (int)getpid(), lease->clock, lease->found, lease->ours, lease->older,
		lease->left
	);

	memset(text + size, ' ', (size_t)(TEXT - size));
	return pwrite(lease->fd, text, TEXT, 0) == TEXT ? 0 : -1;
}

static int read_lease(struct lease *lease)
{
	char text[TEXT + 1] = "";
	int pid, left;

	if (pread(lease->fd, text, TEXT, 0) <= 0
	    || sscanf(text, "job=%lu\npid=%d\nclock=%15s\nfound=%ld\nours=%ld\nolder=%ld\nleft=%d",
		      &lease->job, &pid, lease->clock, &lease->found, &lease->ours, &lease->older,
		      &left) != 7)
		return -1;
	lease->left = left;
	return 0;
}

/* Opens and locks it as it lies there now; -1: somebody holds it (EWOULDBLOCK), or worse. */
static int locked(const char *path, int flags)
{
	for (;;) {
		struct stat ours, there;
		int fd = open(path, flags | O_CLOEXEC | O_NOFOLLOW, 0644);

		if (fd < 0)
			return -1;
		if (flock(fd, LOCK_EX | LOCK_NB) != 0) {
			int error = errno;

			close(fd);
			errno = error;
			return -1;
		}
		if (fstat(fd, &ours) == 0 && lstat(path, &there) == 0 && ours.st_ino == there.st_ino)
			return fd;
		close(fd); /* removed meanwhile */
	}
}

static unsigned long holder(const char *path)
{
	struct lease lease = { .fd = open(path, O_RDONLY | O_CLOEXEC | O_NOFOLLOW) };
	unsigned long job = lease.fd >= 0 && read_lease(&lease) == 0 ? lease.job : 0;

	if (lease.fd >= 0)
		close(lease.fd);
	return job;
}

int lease_take(
	struct lease *lease, const struct conf *conf, const struct clock *clock, bool *adopted,
	char why[STEER_WHY]
)
{
	struct timex tx = { 0 };
	char path[STEER_PATH + 32];

	snprintf(path, sizeof(path), "%s/%s.lease", conf->leases, clock->name);
	*lease = (struct lease){ .fd = locked(path, O_RDWR | O_CREAT) };
	if (lease->fd < 0) {
		if (errno == EWOULDBLOCK)
			snprintf(why, STEER_WHY, "job %lu steers the %s clock of this node already",
				 holder(path), clock->name);
		else
			snprintf(why, STEER_WHY, "%s.lease: %s", clock->name, strerror(errno));
		return -1;
	}
	*adopted = read_lease(lease) == 0 && lease->job == conf->job && !lease->left;
	if (!*adopted && lease->job) /* of a job that died here */
		lease_restore(lease, clock);
	if (clock_adjust(clock, &tx) < 0) {
		snprintf(why, STEER_WHY, "the %s clock: clock_adjtime: %s", clock->name, strerror(errno));
		unlink(path);
		return -1;
	}
	if (*adopted && labs(tx.freq - lease->ours) > SAME && labs(tx.freq - lease->older) > SAME) {
		snprintf(why, STEER_WHY, "somebody else steers the %s clock now", clock->name);
		lease->left = true;
		lease_write(lease);
		return -1;
	}
	if (!*adopted) {
		*lease = (struct lease){ .fd = lease->fd, .job = conf->job };
		snprintf(lease->clock, sizeof(lease->clock), "%s", clock->name);
		lease->found = tx.freq;
	}
	lease->ours = lease->older = tx.freq; /* one before us may have died before it set what it wrote */
	return lease_write(lease);
}

void lease_restore(struct lease *lease, const struct clock *clock)
{
	struct timex tx = { 0 };

	if (lease->left || clock_adjust(clock, &tx) < 0)
		return;
	if (labs(tx.freq - lease->ours) > SAME && labs(tx.freq - lease->older) > SAME)
		return; /* somebody else's by now */
	if (tx.freq == lease->found)
		return;
	tx = (struct timex){ .modes = ADJ_FREQUENCY, .freq = lease->found };
	if (clock_adjust(clock, &tx) >= 0) {
		lease->ours = lease->older = lease->found;
		lease_write(lease);
	}
}

static bool kept(char *const keep[], unsigned long job)
{
	for (; *keep; keep++)
		if (strtoul(*keep, NULL, 10) == job)
			return true;
	return false;
}

static void clean_one(const char *path, const char *lab, char *const keep[])
{
	struct lease lease = { .fd = locked(path, O_RDWR) };
	struct clock clock = { .fd = -1 };
	char why[STEER_WHY];

	if (lease.fd < 0)
		return; /* held */
	if (read_lease(&lease) == 0) {
		if (kept(keep, lease.job) && !lease.left)
			goto out;
		if (!clock_open(&clock, lease.clock, lab, why)) {
			lease_restore(&lease, &clock);
			printf("%s: put back, job %lu\n", lease.clock, lease.job);
		}
	}
	unlink(path);
out:
	if (clock.fd >= 0)
		close(clock.fd);
	close(lease.fd);
}

int lease_clean(const char *leases, const char *lab, char *const keep[])
{
	DIR *directory = opendir(leases);
	struct dirent *entry;

	while (directory && (entry = readdir(directory))) {
		char path[STEER_PATH + 300];
		size_t length = strlen(entry->d_name);

		if (length < 7 || strcmp(entry->d_name + length - 6, ".lease"))
			continue;
		snprintf(path, sizeof(path), "%s/%s", leases, entry->d_name);
		clean_one(path, lab, keep);
	}
	if (directory)
		closedir(directory);
	return 0;
}
