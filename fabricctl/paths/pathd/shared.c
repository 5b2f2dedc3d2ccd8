/* What the jobs of a node share: the fabric devices, sysctls, shares; setting up and removing it. */
#include "daemon.h"
#include "lease.h"
#include "slicing.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <net/if.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#define RP_LOOSE 2 /* Documentation/networking/ip-sysctl.rst, rp_filter */
#define SINK_RTO_MIN_MS 0 /* nothing is ever acknowledged there */

static bool write_text(const char *path, const char *text)
{
	int fd = open(path, O_WRONLY | O_CLOEXEC);
	bool done = fd >= 0 && write(fd, text, strlen(text)) == (ssize_t)strlen(text);

	if (fd >= 0)
		close(fd);
	return done;
}

static int read_number(const char *path)
{
	FILE *stream = fopen(path, "re");
	int value = -1;

	if (stream && fscanf(stream, "%d", &value) != 1)
		value = -1;
	if (stream)
		fclose(stream);
	return value;
}

/* A sysctl of ours, with what it was before put down first. */
static bool sysctl_set(const char *leases, const char *path, int value)
{
	char saved[CONF_PATH + 16], text[16];
	FILE *stream;
	int before = read_number(path);
	bool kept;

	if (before < 0 || before == value)
		return before == value;
	snprintf(saved, sizeof(saved), "%s/sysctl.saved", leases);
	stream = fopen(saved, "ae");
	if (!stream)
		return false;
	kept = fprintf(stream, "%s %d\n", path, before) > 0;
	kept &= fclose(stream) == 0;
	snprintf(text, sizeof(text), "%d", value);
	return kept && write_text(path, text);
}

/* But what somebody else has set since. */
static void sysctls_restore(const char *leases)
{
	char saved[CONF_PATH + 16], path[256], text[16];
	FILE *stream;
	int value;

	snprintf(saved, sizeof(saved), "%s/sysctl.saved", leases);
	stream = fopen(saved, "re");
	if (!stream)
		return;
	while (fscanf(stream, "%255s %d", path, &value) == 2) {
		snprintf(text, sizeof(text), "%d", value);
		if (strncmp(path, "/proc/sys/net/", 14) == 0 && read_number(path) == RP_LOOSE)
			write_text(path, text);
	}
	fclose(stream);
	unlink(saved);
}

/* What another rail's fabric address sends comes in by this one when its own rail is out: the
 * strict reverse path filter would drop it, the loose one (2) takes it. */
static bool loosen_filter(const struct conf *conf, const char *rail)
{
	char path[128];
	int all, own;

	snprintf(path, sizeof(path), "/proc/sys/net/ipv4/conf/%s/rp_filter", rail);
	all = read_number("/proc/sys/net/ipv4/conf/all/rp_filter");
	own = read_number(path);
	if ((all > own ? all : own) != 1)
		return true;
	return sysctl_set(conf->leases, path, RP_LOOSE);
}

static int setup_address(struct daemon *d, unsigned rail, int family)
{
	const struct net *pool = family == FAMILY4 ? &d->conf.pool4 : &d->conf.pool6;
	const struct conf_rail *conf = &d->conf.rail[rail];
	const struct ip *own = family == FAMILY4 ? &conf->net4.ip : &conf->ip6;
	struct ip *self = &d->mover.self[family][rail];
	struct net part;
	int error;

	if (!pool->ip.family || !own->family)
		return 0;
	*self = fabric_address(pool, rail, own);
	part = fabric_rail_net(pool, rail);
	error = mover_address_add(&d->mover.rtnl, d->rail[rail].fabric_ifindex, self);
	if (!error)
		error = mover_sink_add(&d->mover.rtnl, &part, self, d->rail[rail].fabric_ifindex,
				       SINK_RTO_MIN_MS);
	return error;
}

static bool setup_rail(struct daemon *d, unsigned rail, char *problem, size_t size)
{
	const struct conf_rail *conf = &d->conf.rail[rail];
	const char *what;
	char path[128];
	int error;

	if (!loosen_filter(&d->conf, conf->name)) {
		snprintf(problem, size, "rp_filter of %s cannot be set to 2", conf->name);
		return false;
	}
	if (d->conf.own) {
		d->mover.own[FAMILY4][rail] = conf->net4.ip;
		d->mover.own[FAMILY6][rail] = conf->ip6;
	}
	if (!d->conf.fabric)
		return true;
	error = mover_device_add(&d->mover.rtnl, conf->fabric, d->rail[rail].mtu, &what);

	if (error) {
		snprintf(problem, size, "device %s: %s: %s", conf->fabric, what, strerror(-error));
		return false;
	}
	/* No link-local address: MPI libraries would try to reach others by it. */
	snprintf(path, sizeof(path), "/proc/sys/net/ipv6/conf/%s/addr_gen_mode", conf->fabric);
	write_text(path, "1");
	d->rail[rail].fabric_ifindex = if_nametoindex(conf->fabric);
	d->mover.fabric_ifindex[rail] = d->rail[rail].fabric_ifindex;
	error = mover_device_up(&d->mover.rtnl, d->rail[rail].fabric_ifindex);
	for (int family = 0; !error && family < FAMILIES; family++)
		error = setup_address(d, rail, family);
	if (error) {
		snprintf(problem, size, "address of %s: %s", conf->fabric, strerror(-error));
		return false;
	}
	return true;
}

int shared_rules(struct daemon *d)
{
	const struct net *pools[FAMILIES] = {&d->conf.pool4, &d->conf.pool6};
	int error = 0;

	if (d->conf.own)
		error = mover_user_rule_add(&d->mover.rtnl, AF_INET, d->conf.uid, d->mover.slot);
	if (d->conf.own && !error) {
		error = mover_user_rule_add(&d->mover.rtnl, AF_INET6, d->conf.uid, d->mover.slot);
		error = error == -EAFNOSUPPORT || error == -EOPNOTSUPP ? 0 : error;
	}
	for (int i = 0; !error && i < FAMILIES; i++) {
		if (!pools[i]->ip.family)
			continue;
		error = mover_rule_add(&d->mover.rtnl, pools[i], d->mover.slot);
	}
	return error;
}

bool shared_setup(struct daemon *d, char *problem, size_t size)
{
	int lock = lease_lock(d->conf.leases), error;
	bool good = lock >= 0;

	if (!good)
		snprintf(problem, size, "%s/lock: %s", d->conf.leases, strerror(errno));
	for (unsigned i = 0; good && i < d->conf.rails; i++)
		good = setup_rail(d, i, problem, size);
	error = good ? mover_last_resorts(&d->mover) : 0;
	if (!error && good)
		error = shared_rules(d);
	if (error) {
		snprintf(problem, size, "routing rules: %s", strerror(-error));
		good = false;
	}
	if (good)
		pacing_setup(d);
	if (lock >= 0)
		close(lock);
	return good;
}

/* With the lock held. */
static int clean_all_if_last(struct rtnl *rtnl, const char *leases)
{
	char path[CONF_PATH + 32];
	int removed;

	for (unsigned slot = 0; slot < FABRIC_SLOTS; slot++) {
		lease_path(leases, slot, path, sizeof(path));
		if (access(path, F_OK) == 0)
			return 0;
	}
	removed = mover_clean(rtnl, FABRIC_SLOTS);
	sysctls_restore(leases);
	return removed;
}

int lease_release(const char *leases, unsigned slot, unsigned long job)
{
	char path[CONF_PATH + 32];
	struct rtnl rtnl;
	int lock = lease_lock(leases), removed = rtnl_open(&rtnl, NETLINK_ROUTE, 0), rest, fd;

	if (lock < 0 || removed)
		return -1;
	lease_path(leases, slot, path, sizeof(path));
	fd = open(path, O_RDONLY | O_CLOEXEC | O_NOFOLLOW);
	if (fd < 0 || lease_job(fd) != job) { /* given back before; another job may have it now */
		if (fd >= 0)
			close(fd);
		rtnl_close(&rtnl);
		close(lock);
		return 0;
	}
	close(fd);
	removed = mover_clean(&rtnl, slot);
	unlink(path);
	rest = slicing_apply(&rtnl, leases, slot, NULL);
	if (rest >= 0)
		rest = clean_all_if_last(&rtnl, leases);
	rtnl_close(&rtnl);
	close(lock);
	return removed < 0 || rest < 0 ? -1 : removed + rest;
}

static bool kept(unsigned long job, const unsigned long *keep, size_t keeps)
{
	for (size_t i = 0; i < keeps; i++)
		if (keep[i] == job)
			return true;
	return false;
}

int shared_clean(const char *leases, const unsigned long *keep, size_t keeps)
{
	char path[CONF_PATH + 32];
	struct rtnl rtnl;
	int lock = lease_lock(leases), removed = 0, part;

	if (lock < 0 || rtnl_open(&rtnl, NETLINK_ROUTE, 0))
		return -1;
	for (unsigned slot = 0; slot < FABRIC_SLOTS; slot++) {
		bool dead = true;
		int fd;

		lease_path(leases, slot, path, sizeof(path));
		fd = open(path, O_RDWR | O_CLOEXEC | O_NOFOLLOW);
		if (fd >= 0)
			dead = flock(fd, LOCK_EX | LOCK_NB) == 0 && !kept(lease_job(fd), keep, keeps);
		part = dead ? mover_clean(&rtnl, slot) : 0;
		if (fd >= 0 && dead)
			unlink(path);
		if (fd >= 0)
			close(fd);
		if (part < 0)
			goto out;
		removed += part;
	}
	part = slicing_apply(&rtnl, leases, 0, NULL);
	if (part >= 0) {
		removed += part;
		part = clean_all_if_last(&rtnl, leases);
	}
out:
	rtnl_close(&rtnl);
	close(lock);
	if (part < 0)
		errno = -part;
	return part < 0 ? -1 : removed + part;
}
