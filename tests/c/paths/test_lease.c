/* What jobs were promised is read from their leases, of an earlier version's as well. */
#include "check.h"
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
	for (unsigned slot = 0; slot < 4; slot++)
		take_away(slot);
	CHECK(rmdir(folder) == 0);
	return check_failures != 0;
}
