/* A stand-in of a NIC that stamps packets, for tests: preloaded, it gives every interface a clock
 * (PHC) and every socket that asked for them that clock's stamps beside the kernel's own, as drivers
 * do: SIOCETHTOOL, SIOC[GS]HWTSTAMP, /dev/ptp*, PTP_SYS_OFFSET*, and what recvmmsg(2) reads. Its state lies in the
 * file STANDIN_NIC (tests/support/standin_nic.py). */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/ethtool.h>
#include <linux/net_tstamp.h>
#include <linux/ptp_clock.h>
#include <linux/sockios.h>
#include <net/if.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#define WIRE_NS 300 /* between the kernel's stamp and the NIC's, both ways */
#define FDS 1024
#define ALL_HARDWARE (SOF_TIMESTAMPING_TX_HARDWARE | SOF_TIMESTAMPING_RX_HARDWARE | SOF_TIMESTAMPING_RAW_HARDWARE)
enum { PRECISE, EXTENDED_RAW, EXTENDED, PLAIN };

struct nic {
	int64_t raw_ns, shown_ns; /* at that instant its clock showed this */
	double drift_ppb;
	int64_t step_raw_ns, step_ns; /* from then on it shows so much more */
	int64_t tx_type, rx_filter, filters; /* what is set, what can be */
	int64_t refuse_set, refuse_read; /* errno of SIOCSHWTSTAMP, of reading the clock */
	int64_t best; /* the best way to read it */
	int64_t read_ns; /* what that takes; the clock is latched after a third of it */
	int64_t lost; /* of 100 packets these get no stamp, either way */
	int64_t sets; /* how often what is stamped was set */
};

static int asked[FDS]; /* flags of SO_TIMESTAMPING */

static struct nic *nic(void)
{
	static struct nic *there;
	int fd;

	if (!there) {
		fd = (int)syscall(SYS_openat, AT_FDCWD, getenv("STANDIN_NIC"), O_RDWR | O_CLOEXEC);
		there = mmap(NULL, sizeof(*there), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
		close(fd);
	}
	return there;
}

static int64_t now_ns(clockid_t id)
{
	struct timespec t;

	clock_gettime(id, &t);
	return t.tv_sec * 1000000000LL + t.tv_nsec;
}

static int64_t shown(int64_t raw_ns)
{
	int64_t passed = raw_ns - nic()->raw_ns;

	return nic()->shown_ns + passed + (int64_t)((double)passed * nic()->drift_ppb * 1e-9)
	       + (nic()->step_raw_ns && raw_ns >= nic()->step_raw_ns ? nic()->step_ns : 0);
}

static struct ptp_clock_time clock_time(int64_t ns)
{
	return (struct ptp_clock_time){ .sec = ns / 1000000000, .nsec = (uint32_t)(ns % 1000000000) };
}

static int fail(int error)
{
	errno = error;
	return -1;
}

/* What a driver answers to the offset ioctls; way: the one asked for. */
static int read_clock(int way, void *arg)
{
	int64_t raw = now_ns(CLOCK_MONOTONIC_RAW), real = now_ns(CLOCK_REALTIME) - raw;
	int64_t early = nic()->read_ns / 3, late = nic()->read_ns - early;

	if (nic()->refuse_read)
		return fail((int)nic()->refuse_read);
	if (way < nic()->best)
		return fail(way == EXTENDED_RAW ? EINVAL : EOPNOTSUPP);
	if (way == PRECISE) {
		struct ptp_sys_offset_precise *found = arg;

		found->device = clock_time(shown(raw));
		found->sys_realtime = clock_time(raw + real);
		found->sys_monoraw = clock_time(raw);
	} else if (way == PLAIN) {
		struct ptp_sys_offset *found = arg;

		for (unsigned i = 0; i < found->n_samples; i++) {
			found->ts[2 * i] = clock_time(raw + real - early);
			found->ts[2 * i + 1] = clock_time(shown(raw));
			found->ts[2 * i + 2] = clock_time(raw + real + late);
			raw += nic()->read_ns;
		}
	} else {
		struct ptp_sys_offset_extended *found = arg;

		for (unsigned i = 0; i < found->n_samples; i++) {
			int64_t base = raw + (way == EXTENDED ? real : 0);

			found->ts[i][0] = clock_time(base - early);
			found->ts[i][1] = clock_time(shown(raw));
			found->ts[i][2] = clock_time(base + late);
		}
	}
	return 0;
}

static int configure(struct hwtstamp_config *config, int set)
{
	if (set && nic()->refuse_set)
		return fail((int)nic()->refuse_set);
	if (set) {
		nic()->tx_type = config->tx_type;
		nic()->rx_filter = config->rx_filter;
		nic()->sets++;
	}
	config->tx_type = (int)nic()->tx_type;
	config->rx_filter = (int)nic()->rx_filter;
	return 0;
}

int ioctl(int fd, unsigned long request, ...)
{
	va_list more;
	void *arg;

	va_start(more, request);
	arg = va_arg(more, void *);
	va_end(more);
	switch (request) {
	case SIOCETHTOOL: {
		struct ethtool_ts_info *info = (void *)((struct ifreq *)arg)->ifr_data;

		if (info->cmd != ETHTOOL_GET_TS_INFO)
			return fail(EOPNOTSUPP);
		info->so_timestamping = ALL_HARDWARE | SOF_TIMESTAMPING_TX_SOFTWARE
					| SOF_TIMESTAMPING_RX_SOFTWARE | SOF_TIMESTAMPING_SOFTWARE;
		info->phc_index = 3;
		info->tx_types = 1 << HWTSTAMP_TX_OFF | 1 << HWTSTAMP_TX_ON;
		info->rx_filters = (uint32_t)nic()->filters;
		return 0;
	}
	case SIOCGHWTSTAMP:
	case SIOCSHWTSTAMP:
		return configure((void *)((struct ifreq *)arg)->ifr_data, request == SIOCSHWTSTAMP);
	case PTP_SYS_OFFSET_PRECISE:
		return read_clock(PRECISE, arg);
	case PTP_SYS_OFFSET_EXTENDED:
		return read_clock(
			((struct ptp_sys_offset_extended *)arg)->rsv[0] == CLOCK_MONOTONIC_RAW ? EXTENDED_RAW
											: EXTENDED,
			arg
		);
	case PTP_SYS_OFFSET:
		return read_clock(PLAIN, arg);
	default:
		return (int)syscall(SYS_ioctl, fd, request, arg);
	}
}

int open(const char *path, int flags, ...)
{
	va_list more;
	mode_t mode;

	va_start(more, flags);
	mode = va_arg(more, mode_t);
	va_end(more);
	if (!strncmp(path, "/dev/ptp", 8))
		path = strcmp(path, "/dev/ptp3") ? "/dev/none" : "/dev/null";
	return (int)syscall(SYS_openat, AT_FDCWD, path, flags, mode);
}

int open64(const char *path, int flags, ...) __attribute__((alias("open")));

int setsockopt(int fd, int level, int name, const void *value, socklen_t size)
{
	if (level == SOL_SOCKET && name == SO_TIMESTAMPING && fd < FDS)
		memcpy(&asked[fd], value, sizeof(int));
	return (int)syscall(SYS_setsockopt, fd, level, name, value, size);
}

static struct timespec *stamps_of(struct msghdr *message)
{
	for (struct cmsghdr *c = CMSG_FIRSTHDR(message); c; c = CMSG_NXTHDR(message, c))
		if (c->cmsg_level == SOL_SOCKET && c->cmsg_type == SO_TIMESTAMPING)
			return (struct timespec *)CMSG_DATA(c);
	return NULL;
}

/* The NIC's stamp of a packet that the kernel stamped; false: it took none. */
static int stamp(struct timespec t[3], int64_t later_ns)
{
	int64_t real = t[0].tv_sec * 1000000000LL + t[0].tv_nsec, phc;

	if (nic()->tx_type != HWTSTAMP_TX_ON || nic()->rx_filter != HWTSTAMP_FILTER_ALL
	    || random() % 100 < nic()->lost)
		return 0;
	phc = shown(now_ns(CLOCK_MONOTONIC_RAW) - (now_ns(CLOCK_REALTIME) - real) + later_ns);
	t[2] = (struct timespec){ phc / 1000000000, phc % 1000000000 };
	return 1;
}

/* What leaves has its two stamps in messages of their own (SOF_TIMESTAMPING_OPT_TX_SWHW); what arrives
 * has both in one. */
int recvmmsg(int fd, struct mmsghdr *m, unsigned size, int flags, struct timespec *timeout)
{
	int wanted = fd < FDS && (asked[fd] & SOF_TIMESTAMPING_RAW_HARDWARE);
	int sent = flags & MSG_ERRQUEUE;
	int count = (int)syscall(SYS_recvmmsg, fd, m, wanted && sent ? size / 2 : size, flags, timeout);
	int more = count;

	for (int i = 0; wanted && i < count; i++) {
		struct msghdr *from = &m[i].msg_hdr, *to = &m[more].msg_hdr;
		struct timespec *t = stamps_of(from);

		if (!t || !stamp(t, sent ? WIRE_NS : -WIRE_NS) || !sent)
			continue;
		m[more].msg_len = m[i].msg_len;
		memcpy(to->msg_iov->iov_base, from->msg_iov->iov_base, m[i].msg_len);
		memcpy(to->msg_control, from->msg_control, from->msg_controllen);
		to->msg_controllen = from->msg_controllen;
		memset(t + 2, 0, sizeof(*t));
		memset(stamps_of(to), 0, sizeof(*t));
		more++;
	}
	return more;
}
