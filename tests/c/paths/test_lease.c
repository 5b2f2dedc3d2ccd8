/* What jobs were promised is read from their leases, of an earlier version's as well. */
#include "check.h"
#include "daemon.h"
#include "lease.h"

#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static char folder[] = "/tmp/fabric-lease-XXXXXX";

static void put(unsigned slot, const char *text)
{
	char path[CONF_PATH + 32];
	FILE *stream;

	lease_path(folder, slot, path, sizeof(path));
	stream = fopen(path, "we");
	CHECK(stream && fputs(text, stream) >= 0 && fclose(stream) == 0);
}

static void take_away(unsigned slot)
{
	char path[CONF_PATH + 32];

	lease_path(folder, slot, path, sizeof(path));
	unlink(path);
}

/* A job that slows down for a queue keeps to what it has now, not to what it was given at its begin. */
static void a_job_that_began_later_keeps_its_share(void)
{
	static struct peer peer = {.known = true, .active_until_ns = 200 * S};
	static struct daemon d = {.active = 1, .sliced = 1, .now_ns = 100 * S, .peer = &peer};
	struct share share = {1001, 600, 1000, SHARE_NORMAL, false};

	snprintf(d.conf.leases, sizeof(d.conf.leases), "%s", folder);
	d.conf.nodes = d.conf.rails = 1;
	d.conf.pace_us = 500;
	d.conf.rail[0].bytes_per_s = 125000000;
	d.mover.rtnl.fd = d.events.fd = -1;
	d.grant = (struct grant){0, 600, 1000, SHARE_NORMAL, false};
	pace_init(&d.pace[0], &share);
	peer.pair.path[0].peer_queue_ns = 5 * MS;
	put(0, "job=7\npid=70\nshare=1001 600 1000 1 0\n");
	put(1, "job=8\npid=80\nshare=1002 600 1000 1 0\n");
	pacing_turn(&d);
	CHECK(d.pace[0].throttled_ns && d.grant.guarantee == 480);
}

int main(void)
{
	struct share mine = {1001, 400, 800, SHARE_LAST, true};
	struct holding held[FABRIC_SLOTS];

	if (!mkdtemp(folder)) {
		printf("%s: cannot be made\n", folder);
		return 1;
	}
	put(0, "job=7\npid=70\nshare=1000 300 900 1\n");
	put(1, "job=8\npid=80\n");
	put(2, "job=9\npid=90\nshare=1000 300 9000 1 0\n");
	put(3, "job=10\npid=100\n");
	CHECK(lease_set_share(folder, 3, &mine) == 0);
	CHECK(lease_shares(folder, held) == 2);
	CHECK(held[0].slot == 0 && held[0].share.uid == 1000 && held[0].share.guarantee == 300);
	CHECK(held[0].share.ceiling == 900 && held[0].share.class == 1 && !held[0].share.apart);
	CHECK(held[1].slot == 3 && held[1].share.uid == 1001 && held[1].share.guarantee == 400);
	CHECK(held[1].share.ceiling == 800 && held[1].share.class == SHARE_LAST && held[1].share.apart);
	CHECK(lease_set_share(folder, 3, NULL) == 0 && lease_shares(folder, held) == 1);
	a_job_that_began_later_keeps_its_share();
	for (unsigned slot = 0; slot < 4; slot++)
		take_away(slot);
	CHECK(rmdir(folder) == 0);
	return check_failures != 0;
}
