/* CLOCK_REALTIME, the clocks of NICs, and in a lab a virtual one: read, asked, set. */
#include "steer.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/ethtool.h>
#include <linux/ptp_clock.h>
#include <linux/sockios.h>
#include <net/if.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <unistd.h>

#include "lab.h"

#define TRIES 8 /* the narrowest reading counts */
#define SYSTEM_MOST_PPB 500000.0 /* MAXFREQ of linux/timex.h */

static int64_t now_ns(clockid_t id)
{
	struct timespec t;

	return clock_gettime(id, &t) ? INT64_MIN : t.tv_sec * 1000000000LL + t.tv_nsec;
}

int clock_adjust(const struct clock *clock, struct timex *tx)
{
	return clock->lab ? lab_adjust(clock->fd, tx) : clock_adjtime(clock->id, tx);
}

int clock_read(const struct clock *clock, int64_t *raw_ns, int64_t *shown_ns)
{
	int64_t narrowest = INT64_MAX;

	for (int i = 0; i < TRIES; i++) {
		int64_t before = raw_now_ns();
		int64_t shown = clock->lab ? lab_now_ns(clock->fd, before) : now_ns(clock->id);
		int64_t after = clock->lab ? before : raw_now_ns();

		if (shown == INT64_MIN)
			return -1;
		if (after - before < narrowest) {
			narrowest = after - before;
			*raw_ns = before + (after - before) / 2;
			*shown_ns = shown;
		}
	}
	return 0;
}

bool clock_owned(const struct clock *clock, const struct timex *tx, char why[STEER_WHY])
{
	const char *how = NULL;

	if (strcmp(clock->name, "system"))
		return false; /* for these the kernel keeps no such word */
	if (tx->status & (STA_PLL | STA_FLL | STA_PPSFREQ | STA_PPSTIME))
		how = "its own discipline is switched on (STA_PLL, STA_FLL or a PPS)";
	else if (!(tx->status & STA_UNSYNC))
		how = "it is synchronised (STA_UNSYNC is off)";
	if (how)
		snprintf(why, STEER_WHY, "the kernel says of CLOCK_REALTIME that %s: something "
					 "disciplines it, or did until lately", how);
	return how != NULL;
}

/* The PHC of an interface; -1: none. */
static int phc_of(const char *interface)
{
	struct ethtool_ts_info info = { .cmd = ETHTOOL_GET_TS_INFO, .phc_index = -1 };
	struct ifreq request = { 0 };
	int fd = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);

	snprintf(request.ifr_name, sizeof(request.ifr_name), "%s", interface);
	request.ifr_data = (void *)&info;
	if (fd < 0 || ioctl(fd, SIOCETHTOOL, &request) != 0)
		info.phc_index = -1;
	if (fd >= 0)
		close(fd);
	return info.phc_index;
}

static int open_phc(struct clock *clock, char why[STEER_WHY])
{
	struct ptp_clock_caps caps = { 0 };
	char path[32];

	snprintf(path, sizeof(path), "/dev/%s", clock->name);
	clock->fd = open(path, O_RDWR | O_CLOEXEC);
	if (clock->fd < 0 || ioctl(clock->fd, PTP_CLOCK_GETCAPS, &caps) != 0 || caps.max_adj <= 0) {
		snprintf(why, STEER_WHY, "%s: %s", path,
			 clock->fd >= 0 && caps.max_adj <= 0 ? "its frequency cannot be set"
							     : strerror(errno));
		return -1;
	}
	clock->id = (clockid_t)(((unsigned)~clock->fd << 3) | 3); /* clock_gettime(2), dynamic */
	clock->most_ppb = caps.max_adj;
	return 0;
}

int clock_open(struct clock *clock, const char *name, const char *lab, char why[STEER_WHY])
{
	*clock = (struct clock){ .id = CLOCK_REALTIME, .fd = -1, .lab = lab && *lab };
	clock->most_ppb = SYSTEM_MOST_PPB;
	snprintf(clock->name, sizeof(clock->name), "%s", name);
	if (strcmp(name, "system"))
		return open_phc(clock, why);
	if (clock->lab && (clock->fd = lab_open(lab)) < 0) {
		snprintf(why, STEER_WHY, "%s: the lab's clock: %s", lab, strerror(errno));
		return -1;
	}
	return 0;
}

int clocks_open(const struct conf *conf, struct clock clocks[STEER_CLOCKS], char why[STEER_WHY])
{
	unsigned count = 0;

	if (conf->system)
		return clock_open(&clocks[0], "system", conf->lab, why) ? -1 : 1;
	for (unsigned i = 0; i < conf->rails; i++) {
		int index = phc_of(conf->rail[i]);
		bool known = false;
		char name[16];

		if (index < 0) {
			snprintf(why, STEER_WHY, "%s: this NIC has no clock of its own (PHC; see "
						 "ethtool -T %s)", conf->rail[i], conf->rail[i]);
			return -1;
		}
		snprintf(name, sizeof(name), "ptp%d", index);
		for (unsigned j = 0; j < count; j++) /* ports of one card share a clock */
			known |= strcmp(clocks[j].name, name) == 0;
		if (!known && clock_open(&clocks[count++], name, "", why))
			return -1;
	}
	if (!count)
		snprintf(why, STEER_WHY, "this node has no rail");
	return count ? (int)count : -1;
}
