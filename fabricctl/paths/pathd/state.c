/* The job's `state` file, and `env`, which appears when the ranks may use the fabric addresses. */
#include "daemon.h"

#include <inttypes.h>
#include <string.h>
#include <unistd.h>

static const char *const PHASE_NAMES[] = {"starting", "starting", "ready", "off"};

static void put_rails(const struct daemon *d, FILE *stream)
{
	char text[IP_TEXT_BYTES];

	for (unsigned i = 0; i < d->conf.rails; i++) {
		fprintf(stream, "rail%u=%s %s", i, d->conf.rail[i].name, d->conf.rail[i].fabric);
		for (int family = 0; family < FAMILIES; family++)
			if (d->mover.self[family][i].family)
				fprintf(stream, " %s", ip_text(&d->mover.self[family][i], text));
		fprintf(stream, "\n");
	}
}

static void env_publish(const struct daemon *d)
{
	char from[CONF_PATH + 8], to[CONF_PATH + 8];

	snprintf(from, sizeof(from), "%s/.env", d->conf.dir);
	snprintf(to, sizeof(to), "%s/env", d->conf.dir);
	if (d->phase == PHASE_READY)
		rename(from, to);
	else if (d->phase == PHASE_OFF)
		unlink(to);
}

void state_write(struct daemon *d)
{
	char path[CONF_PATH + 8], fresh[CONF_PATH + 16];
	FILE *stream;
	bool good;

	d->state_changed = false;
	env_publish(d); /* first: whoever reads `ready` finds it */
	snprintf(path, sizeof(path), "%s/state", d->conf.dir);
	snprintf(fresh, sizeof(fresh), "%s/.state", d->conf.dir);
	stream = fopen(fresh, "we");
	if (!stream)
		return;
	fprintf(stream, "v=1\nstate=%s\njob=%lu\nslot=%u\npid=%d\nscheduler=%s\n",
		PHASE_NAMES[d->phase], d->conf.job, d->mover.slot, (int)getpid(),
		d->realtime ? "fifo" : "other");
	if (d->phase == PHASE_OFF)
		fprintf(stream, "why=%s\n", d->why);
	put_rails(d, stream);
	good = fprintf(stream, "updated_mono_ns=%" PRIu64 "\n", mono_ns()) > 0;
	good &= fclose(stream) == 0;
	if (good)
		rename(fresh, path);
	else
		unlink(fresh);
}
