/* Requests of `fabricctl path`: answers of any size, what is told before it is done, and what holds for
 * a worker that follows one that died. */
#include "check.h"
#include "daemon.h"

#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#define NODES 1000

static char folder[] = "/tmp/fabric-control-XXXXXX";
static char answer[1 << 16];

static void begin(struct daemon *d)
{
	memset(d, 0, sizeof(*d));
	d->now_ns = mono_ns();
	d->events.fd = -1;
	d->conf.nodes = NODES;
	d->conf.rails = 2;
	d->conf.node = calloc(NODES, sizeof(*d->conf.node));
	d->peer = calloc(NODES, sizeof(*d->peer));
	snprintf(d->conf.dir, sizeof(d->conf.dir), "%s", folder);
	snprintf(d->conf.leases, sizeof(d->conf.leases), "%s", folder);
	for (unsigned i = 0; i < 2; i++) {
		snprintf(d->conf.rail[i].name, IFNAMSIZ, "r%u", i);
		d->rail[i].conf = &d->conf.rail[i];
	}
	for (unsigned i = 0; i < NODES; i++) {
		struct peer *peer = &d->peer[i];

		snprintf(d->conf.node[i].name, CONF_NAME, "n%u", i);
		peer->number = i;
		peer->node = &d->conf.node[i];
		peer->known = i != 0;
		pair_init(&peer->pair, 2, d->now_ns);
		for (unsigned k = 0; k < 2; k++)
			peer->route.members[k] = pair_members(&peer->pair, k);
	}
	CHECK(control_open(d));
}

static void end(struct daemon *d)
{
	close(d->control);
	free(d->peer);
	free(d->conf.node);
}

static const char *ask(struct daemon *d, const char *request)
{
	struct sockaddr_un self = {.sun_family = AF_UNIX}, there = {.sun_family = AF_UNIX};
	int fd = socket(AF_UNIX, SOCK_DGRAM, 0);
	ssize_t got;

	snprintf(there.sun_path, sizeof(there.sun_path), "%s/control", folder);
	CHECK(bind(fd, (struct sockaddr *)&self, sizeof(self.sun_family)) == 0);
	CHECK(connect(fd, (struct sockaddr *)&there, sizeof(there)) == 0);
	CHECK(send(fd, request, strlen(request), 0) > 0);
	control_serve(d);
	got = recv(fd, answer, sizeof(answer) - 1, MSG_DONTWAIT);
	answer[got > 0 ? got : 0] = '\0';
	close(fd);
	return answer;
}

static unsigned lines(const char *text, const char *begin_with)
{
	unsigned count = 0;

	for (const char *at = text; at && *at; at = strchr(at, '\n') ? strchr(at, '\n') + 1 : NULL)
		count += strncmp(at, begin_with, strlen(begin_with)) == 0;
	return count;
}

static void every_path_of_a_large_job_is_shown(struct daemon *d)
{
	char request[64] = "do=show";
	unsigned shown = 0, parts = 0;
	const char *next;

	do {
		next = strstr(ask(d, request), "\nnext=");
		shown += lines(answer, "peer=");
		snprintf(request, sizeof(request), "do=show\nfrom=%d", next ? atoi(next + 6) : 0);
		CHECK(++parts < 100);
	} while (next && parts < 100);
	CHECK(parts > 1 && shown == 2 * (NODES - 1));
	CHECK(lines(ask(d, "do=show\npeer=n9"), "peer=n9;") == 2 && !strstr(answer, "next="));
	CHECK(!strcmp(ask(d, "do=show\npeer=m9"), "error=no such peer\n"));
	CHECK(!strcmp(ask(d, "do=show\npeer=n0"), "error=no such peer\n")); /* ourselves */
}

static void all_that_moves_is_counted(struct daemon *d)
{
	CHECK(strstr(ask(d, "do=drain\nrail=1\ndry=1"), "\nmoves=999;stays=0;done=0\n"));
	CHECK(lines(answer, "peer=") > 50 && !d->rail[1].drained);
	/* Nothing else carries what goes to n5. */
	d->peer[5].pair.path[0].listening = GONE;
	for (unsigned i = 0; i < 2; i++)
		d->peer[5].route.members[i] = pair_members(&d->peer[5].pair, i);
	CHECK(strstr(ask(d, "do=drain\nrail=1\ndry=1"), "\nmoves=998;stays=2;done=0\n"));
	CHECK(!strcmp(ask(d, "do=move\npeer=n5\nrail=0\ndry=1"), "moves=0;stays=2;done=0\n"));
	d->peer[5].pair.path[0].listening = HEARD;
}

static void it_holds_for_one_that_follows(struct daemon *d)
{
	static struct daemon next;

	ask(d, "do=drain\nrail=1");
	ask(d, "do=move\npeer=n7\nrail=0");
	CHECK(d->rail[1].drained && d->peer[7].pair.pin == 0);
	begin(&next);
	byhand_load(&next);
	CHECK(next.rail[1].drained && !next.rail[0].drained && next.peer[9].pair.path[1].drained);
	CHECK(next.peer[7].pair.pin == 0 && next.peer[8].pair.pin == -1);
	for (unsigned i = 0; i < NODES; i++)
		for (unsigned k = 0; k < 2; k++)
			next.peer[i].route.members[k] = pair_members(&next.peer[i].pair, k);
	/* It is used again some ms later: all the same it is told. n7 stays where it was moved to. */
	next.peer[8].pair.path[1].apart = true;
	CHECK(strstr(ask(&next, "do=undrain\nrail=1\ndry=1"), "\nmoves=998;stays=0;done=0\n"));
	ask(&next, "do=undrain\nrail=1");
	ask(&next, "do=unmove\npeer=n7");
	end(&next);
	begin(&next);
	byhand_load(&next);
	CHECK(!next.rail[1].drained && next.peer[7].pair.pin == -1);
	end(&next);
}

static void a_rail_of_the_node_is_out_for_each_job(void)
{
	static struct daemon d;
	char path[64];
	FILE *stream;

	snprintf(path, sizeof(path), "%s/drained", folder);
	stream = fopen(path, "we");
	CHECK(stream && fputs("r0 uid 0: a new cable\nnone\n", stream) >= 0 && fclose(stream) == 0);
	begin(&d);
	byhand_load(&d);
	CHECK(d.rail[0].drained && !d.rail[1].drained);
	end(&d);
	unlink(path);
}

int main(void)
{
	static struct daemon d;
	char path[64];

	if (!mkdtemp(folder)) {
		printf("%s: cannot be made\n", folder);
		return 1;
	}
	begin(&d);
	every_path_of_a_large_job_is_shown(&d);
	all_that_moves_is_counted(&d);
	it_holds_for_one_that_follows(&d);
	a_rail_of_the_node_is_out_for_each_job();
	end(&d);
	for (const char *const *name = (const char *const[]){"control", "by_hand", NULL}; *name; name++) {
		snprintf(path, sizeof(path), "%s/%s", folder, *name);
		unlink(path);
	}
	CHECK(rmdir(folder) == 0);
	return check_failures != 0;
}
