#include "lease.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/file.h>
#include <time.h>
#include <unistd.h>

#define LOCK_WAIT_MS 5000
#define LEASE_BYTES 128

int lease_lock(const char *leases)
{
	char path[CONF_PATH + 16];
	int fd;

	snprintf(path, sizeof(path), "%s/lock", leases);
	fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600);
	for (int waited = 0; fd >= 0 && flock(fd, LOCK_EX | LOCK_NB) != 0; waited += 10) {
		struct timespec pause = {.tv_nsec = 10 * 1000000l};

		if (waited > LOCK_WAIT_MS) {
			close(fd);
			errno = ETIMEDOUT;
			return -1;
		}
		nanosleep(&pause, NULL);
	}
	return fd;
}

void lease_path(const char *leases, unsigned slot, char *path, size_t size)
{
	snprintf(path, size, "%s/%u.lease", leases, slot);
}

unsigned long lease_job(int fd)
{
	char text[64] = "";
	unsigned long job = 0;

	if (pread(fd, text, sizeof(text) - 1, 0) <= 0 || sscanf(text, "job=%lu", &job) != 1)
		return 0;
	return job;
}

static int lease_write(int fd, unsigned long job, int pid, const struct share *share)
{
	char text[LEASE_BYTES];
	int size = snprintf(text, sizeof(text), "job=%lu\npid=%d\n", job, pid);

	if (share && share->ceiling)
		size += snprintf(text + size, sizeof(text) - (size_t)size, "share=%u %u %u %u %d\n",
				 share->uid, share->guarantee, share->ceiling, share->class, share->apart);
	/* In this order, so that no crash leaves a lease of nobody. */
	return pwrite(fd, text, (size_t)size, 0) == size && ftruncate(fd, size) == 0 ? 0 : -1;
}

/* One that exists: of our job adopt it; 0: not ours; -2: held by a living one of our job. */
static int lease_try(const char *path, unsigned long job)
{
	int fd = open(path, O_RDWR | O_CLOEXEC | O_NOFOLLOW);
	bool ours = fd >= 0 && lease_job(fd) == job;

	if (ours && flock(fd, LOCK_EX | LOCK_NB) == 0)
		return fd;
	if (fd >= 0)
		close(fd);
	return ours ? -2 : 0;
}

static int lease_new(const char *leases, unsigned *slot)
{
	char path[CONF_PATH + 32];

	for (*slot = 0; *slot < FABRIC_SLOTS; (*slot)++) {
		int fd;

		lease_path(leases, *slot, path, sizeof(path));
		fd = open(path, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC | O_NOFOLLOW, 0644);
		if (fd >= 0 && flock(fd, LOCK_EX | LOCK_NB) == 0)
			return fd;
		if (fd >= 0)
			close(fd);
		else if (errno != EEXIST)
			return -1;
	}
	errno = EUSERS; /* 64 jobs with failover on one node, or leases that nobody cleaned */
	return -1;
}

int lease_take(const struct conf *conf, unsigned *slot, bool *adopted)
{
	char path[CONF_PATH + 32];
	int lock = lease_lock(conf->leases), fd = 0;

	if (lock < 0)
		return -1;
	*adopted = false;
	for (*slot = 0; !fd && *slot < FABRIC_SLOTS; (*slot)++) {
		lease_path(conf->leases, *slot, path, sizeof(path));
		fd = lease_try(path, conf->job);
	}
	if (fd > 0) {
		(*slot)--;
		*adopted = true;
	} else if (fd == -2) {
		errno = EALREADY;
		fd = -1;
	} else {
		fd = lease_new(conf->leases, slot);
	}
	if (fd >= 0 && lease_write(fd, conf->job, (int)getpid(), &conf->share) != 0) {
		close(fd);
		fd = -1;
	}
	close(lock);
	return fd;
}


int lease_set_share(const char *leases, unsigned slot, const struct share *share)
{
	char path[CONF_PATH + 32], text[LEASE_BYTES] = "";
	unsigned long job;
	int fd, pid, error = -1;

	lease_path(leases, slot, path, sizeof(path));
	fd = open(path, O_RDWR | O_CLOEXEC | O_NOFOLLOW);
	if (fd < 0)
		return -1;
	if (pread(fd, text, sizeof(text) - 1, 0) > 0 &&
	    sscanf(text, "job=%lu\npid=%d", &job, &pid) == 2)
		error = lease_write(fd, job, pid, share);
	close(fd);
	return error;
}

static bool read_share(const char *path, struct share *share)
{
	char text[LEASE_BYTES] = "", *at;
	unsigned uid, guarantee, ceiling, class, apart = 0; /* not told by a job's of an earlier version */
	int fd = open(path, O_RDONLY | O_CLOEXEC | O_NOFOLLOW);
	bool good = fd >= 0 && pread(fd, text, sizeof(text) - 1, 0) > 0;

	if (fd >= 0)
		close(fd);
	at = good ? strstr(text, "\nshare=") : NULL;
	if (!at || sscanf(at, "\nshare=%u %u %u %u %u", &uid, &guarantee, &ceiling, &class, &apart) < 4 ||
	    guarantee > SHARE_WHOLE || !ceiling || ceiling > SHARE_WHOLE || class >= SHARE_CLASSES)
		return false;
	*share = (struct share){uid, (uint16_t)guarantee, (uint16_t)ceiling, (uint8_t)class,
				apart == 1};
	return true;
}

unsigned lease_shares(const char *leases, struct holding holding[FABRIC_SLOTS])
{
	char path[CONF_PATH + 32];
	unsigned count = 0;

	for (unsigned slot = 0; slot < FABRIC_SLOTS; slot++) {
		lease_path(leases, slot, path, sizeof(path));
		if (read_share(path, &holding[count].share))
			holding[count++].slot = slot;
	}
	return count;
}
