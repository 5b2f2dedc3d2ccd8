/* What people asked of this job, kept in its file `by_hand`: rails that are out, and peers that were moved
 * to one. It holds until it is taken back, whatever happens to this worker. */
#include "daemon.h"

#include <string.h>
#include <unistd.h>

#define DRAINED "drained"
#define MOVED "moved"

static void set_drained(struct daemon *d, unsigned rail)
{
	d->rail[rail].drained = true;
	for (unsigned i = 0; i < d->conf.nodes; i++)
		d->peer[i].pair.path[rail].drained = true;
}

/* By name: the rails of one that follows may have other numbers. */
static void take(struct daemon *d, const char *what, const char *rail, const char *peer)
{
	for (unsigned i = 0; i < d->conf.rails; i++) {
		if (strcmp(rail, d->conf.rail[i].name) != 0)
			continue;
		if (!strcmp(what, DRAINED))
			set_drained(d, i);
		for (unsigned k = 0; !strcmp(what, MOVED) && k < d->conf.nodes; k++)
			if (!strcmp(peer, d->conf.node[k].name))
				d->peer[k].pair.pin = (int)i;
	}
}

static void load(struct daemon *d, const char *path, const char *what)
{
	char line[512], first[16], second[IFNAMSIZ], peer[CONF_NAME];
	FILE *stream = fopen(path, "re");

	while (stream && fgets(line, sizeof(line), stream)) {
		peer[0] = '\0';
		if (what && sscanf(line, "%15s", second) == 1)
			take(d, what, second, peer);
		else if (!what && sscanf(line, "%15s %15s %63s", first, second, peer) >= 2)
			take(d, first, second, peer);
	}
	if (stream)
		fclose(stream);
}

/* And rails that are out for maintenance in every job of the node, as `fabricctl path drain-rail` keeps
 * them: lines that begin with an interface's name. */
void byhand_load(struct daemon *d)
{
	char path[CONF_PATH + 16];

	snprintf(path, sizeof(path), "%s/drained", d->conf.leases);
	load(d, path, DRAINED);
	snprintf(path, sizeof(path), "%s/by_hand", d->conf.dir);
	load(d, path, NULL);
}

bool byhand_save(const struct daemon *d)
{
	char path[CONF_PATH + 16], fresh[CONF_PATH + 16];
	FILE *stream;
	bool good;

	snprintf(path, sizeof(path), "%s/by_hand", d->conf.dir);
	snprintf(fresh, sizeof(fresh), "%s/.by_hand", d->conf.dir);
	stream = fopen(fresh, "we");
	if (!stream)
		return false;
	for (unsigned i = 0; i < d->conf.rails; i++)
		if (d->rail[i].drained)
			fprintf(stream, DRAINED " %s\n", d->conf.rail[i].name);
	for (unsigned i = 0; i < d->conf.nodes; i++)
		if (d->peer[i].pair.pin >= 0 && i != d->conf.self)
			fprintf(stream, MOVED " %s %s\n", d->conf.rail[d->peer[i].pair.pin].name,
				d->conf.node[i].name);
	good = !ferror(stream);
	good &= fclose(stream) == 0;
	good = good && rename(fresh, path) == 0;
	if (!good)
		unlink(fresh);
	return good;
}
