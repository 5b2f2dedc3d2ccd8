/* A stand-in of the clocks that fabric-steer sets, for tests: preloaded, it answers clock_adjtime(2),
 * clock_gettime(2) of these clocks, the ioctls of ethtool and PTP, and open of /dev/ptp*, as the kernel
 * does. What it keeps lies in the file STANDIN_CLOCK, for the test to see and to change. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/ethtool.h>
#include <linux/ptp_clock.h>
#include <linux/sockios.h>
#include <net/if.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/timex.h>
#include <time.h>
#include <unistd.h>

struct standin { /* tests/support/standin_clock.py */
	int64_t raw_ns, shown_ns; /* at that instant it showed this */
	int64_t freq;		  /* timex.freq */
	double drift_ppb;	  /* how fast it runs by itself */
	int64_t status, refuse;	  /* errno of every setting */
	int64_t sets, steps;	  /* how often what was set */
	int64_t phc;		  /* of every interface */
};

static struct standin *clock_file(void)
{
	static struct standin *there;
	int fd;

	if (!there) {
		fd = open(getenv("STANDIN_CLOCK"), O_RDWR | O_CLOEXEC);
		there = mmap(NULL, sizeof(*there), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
		close(fd);
	}
	return there;
}

static int64_t raw_now(void)
{
	struct timespec t;

	syscall(SYS_clock_gettime, CLOCK_MONOTONIC_RAW, &t);
	return t.tv_sec * 1000000000LL + t.tv_nsec;
}

static int64_t shown_now(const struct standin *it, int64_t raw_ns)
{
	double rate = (it->drift_ppb + (double)it->freq * 1000 / 65536) * 1e-9;
	int64_t passed = raw_ns - it->raw_ns;

	return it->shown_ns + passed + (int64_t)((double)passed * rate);
}

/* CLOCK_REALTIME and whatever is made of a descriptor: clock_gettime(2). */
static int ours(clockid_t id)
{
	return id == CLOCK_REALTIME || (id & 7) == 3;
}

int clock_gettime(clockid_t id, struct timespec *t)
{
	int64_t shown;

	if (!ours(id))
		return (int)syscall(SYS_clock_gettime, id, t);
	shown = shown_now(clock_file(), raw_now());
	t->tv_sec = shown / 1000000000;
	t->tv_nsec = shown % 1000000000;
	return 0;
}

int clock_adjtime(clockid_t id, struct timex *tx)
{
	struct standin *it = clock_file();

	if (!ours(id)) {
		errno = EINVAL;
		return -1;
	}
	if (tx->modes && it->refuse) {
		errno = (int)it->refuse;
		return -1;
	}
	if (tx->modes & ~ADJ_FREQUENCY)
		it->steps++;
	if (tx->modes & ADJ_FREQUENCY) {
		int64_t now = raw_now(), shown = shown_now(it, now);

		it->raw_ns = now;
		it->shown_ns = shown;
		it->freq = tx->freq;
		it->sets++;
	}
	tx->freq = it->freq;
	tx->status = (int)it->status;
	return it->status & STA_UNSYNC ? TIME_ERROR : TIME_OK;
}

int ioctl(int fd, unsigned long request, ...)
{
	va_list more;
	void *arg;

	va_start(more, request);
	arg = va_arg(more, void *);
	va_end(more);
	if (request == PTP_CLOCK_GETCAPS) {
		((struct ptp_clock_caps *)arg)->max_adj = 100000;
		return 0;
	}
	if (request == SIOCETHTOOL) {
		struct ethtool_ts_info *info = (void *)((struct ifreq *)arg)->ifr_data;

		if (info->cmd != ETHTOOL_GET_TS_INFO) {
			errno = EOPNOTSUPP;
			return -1;
		}
		info->phc_index = (int)clock_file()->phc;
		return 0;
	}
	return (int)syscall(SYS_ioctl, fd, request, arg);
}

int open(const char *path, int flags, ...)
{
	va_list more;
	mode_t mode;

	va_start(more, flags);
	mode = va_arg(more, mode_t);
	va_end(more);
	if (!strncmp(path, "/dev/ptp", 8))
		path = getenv("STANDIN_PTP"); /* any character device */
	return (int)syscall(SYS_openat, AT_FDCWD, path, flags, mode);
}
