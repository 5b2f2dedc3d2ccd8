#include "slicing.h"

#include "lease.h"
#include "slice.h"

#include <errno.h>
#include <inttypes.h>
#include <string.h>
#include <unistd.h>

static void sliced_path(const char *leases, const char *name, char path[CONF_PATH + 16])
{
	snprintf(path, CONF_PATH + 16, "%s/%s", leases, name);
}

static unsigned read_sliced(const char *leases, struct sliced *rail)
{
	char path[CONF_PATH + 16];
	unsigned count = 0;
	FILE *stream;

	sliced_path(leases, "sliced", path);
	stream = fopen(path, "re");
	while (stream && count < SLICE_RAILS &&
	       fscanf(stream, "%15s %" SCNu64 " %15s", rail[count].name, &rail[count].bytes_per_s,
		      rail[count].before) == 3)
		count += rail[count].bytes_per_s > 0;
	if (stream)
		fclose(stream);
	return count;
}

static int write_sliced(const char *leases, const struct sliced *rail, unsigned count)
{
	char path[CONF_PATH + 16], fresh[CONF_PATH + 16];
	FILE *stream;
	bool good = true;

	sliced_path(leases, "sliced", path);
	sliced_path(leases, ".sliced", fresh);
	stream = fopen(fresh, "we");
	if (!stream)
		return -errno;
	for (unsigned i = 0; i < count; i++)
		good &= fprintf(stream, "%s %" PRIu64 " %s\n", rail[i].name, rail[i].bytes_per_s,
				rail[i].before) > 0;
	good &= fclose(stream) == 0;
	return good && rename(fresh, path) == 0 ? 0 : -EIO;
}

int slicing_mark(struct rtnl *rtnl, const char *leases, const struct conf_rail *rail)
{
	struct sliced sliced[SLICE_RAILS + 1];
	unsigned count = read_sliced(leases, sliced), at = 0;
	int error;

	while (at < count && strcmp(sliced[at].name, rail->name) != 0)
		at++;
	if (at == SLICE_RAILS)
		return -ENOSPC;
	if (at < count && sliced[at].bytes_per_s == rail->bytes_per_s)
		return 0;
	if (at == count) {
		snprintf(sliced[at].name, sizeof(sliced[at].name), "%s", rail->name);
		error = slice_look(rtnl, if_nametoindex(rail->name), sliced[at].before);
		if (error)
			return error;
		count++;
	}
	sliced[at].bytes_per_s = rail->bytes_per_s;
	return write_sliced(leases, sliced, count); /* before anything is changed */
}

static int apply_rail(struct rtnl *rtnl, const struct sliced *rail, const struct grant *grant,
		      unsigned count, uint16_t rest)
{
	unsigned ifindex = if_nametoindex(rail->name);
	uint64_t slots = 0;
	int error;

	if (!ifindex)
		return 0; /* the port is gone, and its queue with it */
	error = slice_rail(rtnl, ifindex, rail->bytes_per_s, rest);
	for (unsigned i = 0; !error && i < count; i++) {
		slots |= 1ull << grant[i].slot;
		error = slice_grant(rtnl, ifindex, rail->bytes_per_s, &grant[i]);
	}
	return error ? error : slice_prune(rtnl, ifindex, slots);
}

static int give_back(struct rtnl *rtnl, const char *leases, const struct sliced *rail, unsigned count)
{
	char path[CONF_PATH + 16];
	int error = 0, removed = 0;

	for (unsigned i = 0; i < count; i++) {
		unsigned ifindex = if_nametoindex(rail[i].name);
		int one = ifindex ? slice_remove(rtnl, ifindex, rail[i].before) : 0;

		error = error ? error : one;
		removed += ifindex && !one;
	}
	if (error)
		return error; /* `sliced` stays: the next one tries again */
	sliced_path(leases, "sliced", path);
	unlink(path);
	return removed;
}

void slicing_grant(const char *leases, unsigned slot, struct grant *mine)
{
	struct holding holding[FABRIC_SLOTS];
	struct grant grant[FABRIC_SLOTS];
	unsigned count = lease_shares(leases, holding);

	share_plan(holding, count, grant);
	for (unsigned i = 0; i < count; i++)
		if (grant[i].slot == slot)
			*mine = grant[i];
}

int slicing_apply(struct rtnl *rtnl, const char *leases, unsigned slot, struct grant *mine)
{
	struct sliced rail[SLICE_RAILS + 1];
	struct holding holding[FABRIC_SLOTS];
	struct grant grant[FABRIC_SLOTS];
	unsigned rails = read_sliced(leases, rail), count;
	uint16_t rest;
	int error = 0;

	if (!rails)
		return 0;
	count = lease_shares(leases, holding);
	if (!count)
		return give_back(rtnl, leases, rail, rails);
	rest = share_plan(holding, count, grant);
	if (mine)
		slicing_grant(leases, slot, mine);
	for (unsigned i = 0; !error && i < rails; i++)
		error = apply_rail(rtnl, &rail[i], grant, count, rest);
	return error;
}
