/* Who else sets a clock: programs that are known to, and for a NIC's clock whoever has it open. */
#include "steer.h"

#include <ctype.h>
#include <dirent.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define COMMAND 4096

/* Names as the kernel keeps them, 15 characters. What is started with one of `harmless` only looks. */
static const struct {
	const char *comm, *harmless[2];
} known[] = {
	{ "chronyd", { "-x" } },
	{ "ntpd", { NULL } }, /* also of ntpsec and openntpd */
	{ "ntp-daemon", { NULL } }, /* ntpd-rs */
	{ "systemd-timesyn", { NULL } },
	{ "ptp4l", { "--free_running=1", "--free_running" } },
	{ "phc2sys", { NULL } },
	{ "ts2phc", { NULL } },
	{ "timemaster", { NULL } },
	{ "sfptpd", { NULL } },
	{ "statime", { NULL } },
};

/* Services of systemd that do nothing else, whatever their program is called. */
static const char *const units[] = {
	"ntpd", "ntp", "ntpsec", "openntpd", "ntpd-rs", "systemd-timesyncd", "phc2sys", "timemaster",
};

static bool has_unit(const char *cgroups, char why[STEER_WHY])
{
	static const char *const trees[] = { "", "/systemd" }; /* of version 2, and beside version 1 */
	char path[STEER_PATH + 64];

	for (size_t i = 0; i < sizeof(units) / sizeof(*units); i++)
		for (int j = 0; j < 2; j++) {
			snprintf(path, sizeof(path), "%s%s/system.slice/%s.service", cgroups,
				 trees[j], units[i]);
			if (access(path, F_OK) == 0) {
				snprintf(why, STEER_WHY, "systemd's %s.service steers the system clock of "
							 "this node", units[i]);
				return true;
			}
		}
	return false;
}

static ssize_t slurp(const char *proc, const char *pid, const char *name, char *text, size_t size)
{
	char path[STEER_PATH + 64];
	ssize_t got;
	int fd;

	snprintf(path, sizeof(path), "%s/%.20s/%s", proc, pid, name);
	fd = open(path, O_RDONLY | O_CLOEXEC);
	got = fd < 0 ? -1 : read(fd, text, size - 1);
	if (fd >= 0)
		close(fd);
	text[got < 0 ? 0 : got] = '\0';
	return got;
}

static bool has_word(const char *command, ssize_t size, const char *const words[2])
{
	for (const char *at = command; at < command + size; at += strlen(at) + 1)
		for (int i = 0; i < 2 && words[i]; i++)
			if (!strcmp(at, words[i]))
				return true;
	return false;
}

static bool is_known(const char *proc, const char *pid, char comm[32])
{
	char command[COMMAND];
	ssize_t size;

	if (slurp(proc, pid, "comm", comm, 32) <= 0)
		return false;
	comm[strcspn(comm, "\n")] = '\0';
	for (size_t i = 0; i < sizeof(known) / sizeof(*known); i++) {
		if (strcmp(comm, known[i].comm))
			continue;
		size = slurp(proc, pid, "cmdline", command, sizeof(command));
		return size < 0 || !has_word(command, size, known[i].harmless);
	}
	return false;
}

static bool has_open(const char *proc, const char *pid, dev_t device)
{
	char path[STEER_PATH + 64];
	struct dirent *entry;
	struct stat about;
	bool found = false;
	DIR *fds;

	snprintf(path, sizeof(path), "%s/%.20s/fd", proc, pid);
	fds = opendir(path);
	while (fds && !found && (entry = readdir(fds)))
		found = isdigit((unsigned char)entry->d_name[0])
			&& fstatat(dirfd(fds), entry->d_name, &about, 0) == 0
			&& S_ISCHR(about.st_mode) && about.st_rdev == device;
	if (fds)
		closedir(fds);
	return found;
}

bool owners_find(
	const struct clock *clock, const char *proc, const char *cgroups, char why[STEER_WHY]
)
{
	bool system = !strcmp(clock->name, "system"), found = false;
	struct stat device = { 0 };
	struct dirent *entry;
	char comm[32] = "";
	DIR *all = opendir(proc);

	if (!system && fstat(clock->fd, &device))
		device.st_rdev = 0;
	while (all && !found && (entry = readdir(all))) {
		if (!isdigit((unsigned char)entry->d_name[0]) || atoi(entry->d_name) == getpid())
			continue;
		if (system)
			found = is_known(proc, entry->d_name, comm);
		else if (device.st_rdev && has_open(proc, entry->d_name, device.st_rdev)) {
			slurp(proc, entry->d_name, "comm", comm, sizeof(comm));
			comm[strcspn(comm, "\n")] = '\0';
			found = true;
		}
		if (found)
			snprintf(why, STEER_WHY, "%.16s (pid %.10s) steers the %s clock of this node",
				 comm, entry->d_name, clock->name);
	}
	if (all)
		closedir(all);
	return found || (system && has_unit(cgroups, why));
}
