#include "lab.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "stamps.h"

#define TEXT 128

/* What the file says: at node_ns of the node's own clock it showed system_ns. */
struct shown {
	int64_t node_ns, system_ns;
	long freq;
	int status;
};

static struct virtual_clock node; /* how the node's own clock errs */
static char node_file[256];

static const char *value_of(const char *text, const char *key)
{
	size_t length = strlen(key);

	for (const char *at = text; at; at = strchr(at, '\n'), at = at ? at + 1 : NULL)
		if (strncmp(at, key, length) == 0 && at[length] == '=')
			return at + length + 1;
	return "";
}

/* fabricctl/lab/vclock.py writes it; a fault may write it anew while we run. */
static void read_node(void)
{
	char text[4096] = "", *end;
	int fd = open(node_file, O_RDONLY | O_CLOEXEC);
	ssize_t got = fd < 0 ? 0 : read(fd, text, sizeof(text) - 1);
	const char *at;

	if (fd >= 0)
		close(fd);
	memset(&node, 0, sizeof(node));
	if (got <= 0)
		return;
	node.used = true;
	node.begin_mono_ns = strtoll(value_of(text, "begin_mono_ns"), NULL, 10);
	node.offset_ns = strtoll(value_of(text, "offset_ns"), NULL, 10);
	node.drift_ppb = strtod(value_of(text, "drift_ppb"), NULL);
	for (at = value_of(text, "waves"); node.waves < VIRTUAL_TERMS; at = end + 1) {
		node.amplitude_ns[node.waves] = strtod(at, &end);
		if (end == at || *end != ':')
			break;
		node.period_s[node.waves] = strtod(end + 1, &end);
		if (*end != ':')
			break;
		node.phase[node.waves++] = strtod(end + 1, &end);
		if (*end != ',')
			break;
	}
	for (at = value_of(text, "steps"); node.steps < VIRTUAL_TERMS; at = end + 1) {
		node.step_s[node.steps] = strtod(at, &end);
		if (end == at || *end != ':')
			break;
		node.step_ns[node.steps++] = strtod(end + 1, &end);
		if (*end != ',')
			break;
	}
}

static int64_t node_ns(int64_t raw_ns)
{
	int64_t behind_ns = raw_now_ns() - raw_ns;

	return raw_ns + virtual_error_ns(&node, mono_now_ns() - behind_ns);
}

static int write_shown(int fd, const struct shown *shown)
{
	char text[TEXT + 1];
	int size = snprintf(
		text, sizeof(text), "v=1\nnode_ns=%" PRId64 "\nsystem_ns=%" PRId64 "\nfreq=%ld\nstatus=%d\npad=",
		shown->node_ns, shown->system_ns, shown->freq, shown->status
	);

	memset(text + size, '.', (size_t)(TEXT - size)); /* always as long: readers see all or nothing */
	text[TEXT - 1] = '\n';
	return pwrite(fd, text, TEXT, 0) == TEXT ? 0 : -1;
}

static int read_shown(int fd, struct shown *shown)
{
	char text[TEXT + 1] = "";

	if (pread(fd, text, TEXT, 0) <= 0)
		return -1;
	return sscanf(
		       text, "v=1\nnode_ns=%" SCNd64 "\nsystem_ns=%" SCNd64 "\nfreq=%ld\nstatus=%d",
		       &shown->node_ns, &shown->system_ns, &shown->freq, &shown->status
	       ) == 4 ? 0 : -1;
}

static int64_t shown_at(const struct shown *shown, int64_t at_node_ns)
{
	int64_t passed = at_node_ns - shown->node_ns;

	return shown->system_ns + passed + llrint((double)passed * (double)shown->freq / 65536e6);
}

int lab_open(const char *directory)
{
	char path[256];
	struct shown shown;
	int fd;

	snprintf(node_file, sizeof(node_file), "%s/clock", directory);
	snprintf(path, sizeof(path), "%s/system", directory);
	read_node();
	fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0644);
	if (fd >= 0 && read_shown(fd, &shown) != 0) {
		struct timespec t;
		int64_t raw_ns = raw_now_ns();

		clock_gettime(CLOCK_REALTIME, &t);
		shown = (struct shown){ .node_ns = node_ns(raw_ns), .status = STA_UNSYNC };
		shown.system_ns = t.tv_sec * 1000000000LL + t.tv_nsec + shown.node_ns - raw_ns;
		if (write_shown(fd, &shown) != 0) {
			close(fd);
			return -1;
		}
	}
	return fd;
}

int64_t lab_now_ns(int fd, int64_t raw_ns)
{
	struct shown shown;

	if (read_shown(fd, &shown) != 0)
		return INT64_MIN;
	read_node();
	return shown_at(&shown, node_ns(raw_ns));
}

int lab_adjust(int fd, struct timex *tx)
{
	struct shown shown;

	if (read_shown(fd, &shown) != 0) {
		errno = EIO;
		return -1;
	}
	if (tx->modes & ADJ_FREQUENCY) {
		int64_t at = node_ns(raw_now_ns());

		shown.system_ns = shown_at(&shown, at);
		shown.node_ns = at;
		shown.freq = tx->freq;
		if (write_shown(fd, &shown) != 0)
			return -1;
	}
	tx->freq = shown.freq;
	tx->status = shown.status;
	tx->offset = 0;
	return shown.status & STA_UNSYNC ? TIME_ERROR : TIME_OK;
}
