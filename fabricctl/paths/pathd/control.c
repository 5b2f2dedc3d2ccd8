/* Requests by `fabricctl path`: a datagram of fields on the job's `control` socket (mode 0600, so
 * its owner and root alone), answered by lines of text. What changes something says what it will
 * do, does it unless `dry=1`, and records who asked and why. */
#include "daemon.h"

#include <errno.h>
#include <inttypes.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#define REQUEST_BYTES 1024
#define ANSWER_BYTES 60000 /* fits a datagram in every default socket buffer */
#define LINE_BYTES 700 /* one path's, with the longest numbers and names */

struct request {
	struct daemon *d;
	const char *action, *why, *peer;
	int rail;
	bool dry;
	unsigned uid, from; /* from: the first peer to show */
	char answer[ANSWER_BYTES];
	size_t size;
};

static void say(struct request *request, const char *format, ...)
	__attribute__((format(printf, 2, 3)));

static void say(struct request *request, const char *format, ...)
{
	size_t left = sizeof(request->answer) - request->size;
	va_list args;
	int size;

	va_start(args, format);
	size = vsnprintf(request->answer + request->size, left, format, args);
	va_end(args);
	if (size > 0 && (size_t)size < left)
		request->size += (size_t)size;
	else
		request->answer[request->size] = '\0';
}

/* For so many lines more. */
static bool room_for(const struct request *request, unsigned lines)
{
	return sizeof(request->answer) - request->size > (size_t)lines * LINE_BYTES;
}

bool control_open(struct daemon *d)
{
	struct sockaddr_un self = {.sun_family = AF_UNIX};
	int on = 1;
	mode_t mask;

	d->control = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	if ((size_t)snprintf(self.sun_path, sizeof(self.sun_path), "%s/control", d->conf.dir) >=
	    sizeof(self.sun_path))
		return false;
	unlink(self.sun_path);
	mask = umask(0177);
	if (d->control >= 0 && (bind(d->control, (struct sockaddr *)&self, sizeof(self)) != 0 ||
				setsockopt(d->control, SOL_SOCKET, SO_PASSCRED, &on, sizeof(on)) != 0)) {
		close(d->control);
		d->control = -1;
	}
	umask(mask);
	return d->control >= 0;
}

static const char *members_text(const struct daemon *d, uint8_t members, char text[64])
{
	size_t size = 0;

	text[0] = '\0';
	for (unsigned i = 0; i < d->conf.rails; i++)
		if (members >> i & 1)
			size += (size_t)snprintf(text + size, 64 - size, "%s%u", size ? "+" : "", i);
	return text;
}

static void show_path(struct request *request, const struct peer *peer, unsigned rail)
{
	static const char *const LEVELS_TEXT[] = {"good", "poor", "dead"};
	static const char *const LISTENING_TEXT[] = {"heard", "suspect", "gone", "proving"};
	const struct path *path = &peer->pair.path[rail];
	bool shared = peer->probe[rail].size; /* else: no subnet there, and nothing is moved */
	char members[64];
	uint64_t now = request->d->now_ns;

	say(request,
	    "peer=%s;rail=%u;level=%s;reason=%s;listening=%s;carried_by=%s;active=%d"
	    ";heard_age_ns=%" PRIu64 ";round_trip_ns=%" PRIu64 ";round_trip_floor_ns=%" PRIu64
	    ";jitter_ns=%" PRIu64 ";lost=%" PRIu64 ";seen=%" PRIu64 ";flaps=%.2f;pinned=%d;queue_ns=%" PRIu64 ";away=%d\n",
	    peer->node->name, rail, shared ? LEVELS_TEXT[pair_level(&peer->pair, rail)] : "none",
	    shared ? reason_name(pair_reason(&peer->pair, rail)) : "subnet", LISTENING_TEXT[path->listening],
	    members_text(request->d, peer->route.members[rail], members),
	    peer->active_until_ns > now, now > path->heard_ns ? now - path->heard_ns : 0,
	    path->round_trip_ns, path->round_trip_floor_ns, path_jitter_ns(path), path->loss.lost,
	    path->loss.seen, path->flaps, peer->pair.pin == (int)rail,
	    path->peer_queue_ns, peer->pair.away >> rail & 1);
}

static bool chosen(const struct request *request, const struct peer *peer)
{
	return peer->known && (!request->peer || !strcmp(request->peer, peer->node->name));
}

/* One that was not met yet has no paths, and is no error. */
static bool names_a_node(struct request *request)
{
	const struct conf *conf = &request->d->conf;

	for (unsigned i = 0; request->peer && i < conf->nodes; i++)
		if (i != conf->self && !strcmp(request->peer, conf->node[i].name))
			return true;
	if (request->peer)
		say(request, "error=no such peer\n");
	return !request->peer;
}

static void show(struct request *request)
{
	struct daemon *d = request->d;

	if (!names_a_node(request))
		return;
	say(request,
	    "job=%lu;slot=%u;rails=%u;peers=%u;active=%u;probes_sent=%" PRIu64
	    ";probes_received=%" PRIu64 ";moves=%" PRIu64 ";events_dropped=%" PRIu64 "\n",
	    d->conf.job, d->mover.slot, d->conf.rails, d->conf.nodes - 1, d->active, d->probes_sent,
	    d->probes_received, d->moves, d->events.dropped);
	for (unsigned rail = 0; rail < d->conf.rails && !request->from; rail++)
		if (d->sliced >> rail & 1)
			say(request, "share_rail=%u;guarantee=%u;ceiling=%u;class=%u;now=%u\n", rail,
			    d->grant.guarantee, d->grant.ceiling, d->grant.class,
			    (unsigned)d->pace[rail].rate);
	for (unsigned i = request->from; i < d->conf.nodes; i++) {
		if (!chosen(request, &d->peer[i]))
			continue;
		if (!room_for(request, d->conf.rails + 1)) {
			say(request, "next=%u\n", i); /* the rest is asked for */
			return;
		}
		for (unsigned rail = 0; rail < d->conf.rails; rail++)
			show_path(request, &d->peer[i], rail);
	}
}

struct plan {
	unsigned moves; /* addresses that another rail carries then */
	unsigned stays; /* that a drained rail carries on, or one that they were moved to does not */
};

/* The change, tried on a copy: which addresses it would move. Of more than an answer holds the first are
 * told, and all are counted. */
static struct plan plan(struct request *request, int pin, int drained)
{
	struct daemon *d = request->d;
	char from[64], to[64];
	struct plan plan = {0};

	for (unsigned i = 0; i < d->conf.nodes; i++) {
		struct peer *peer = &d->peer[i];
		struct pair copy = peer->pair;

		if (!chosen(request, peer))
			continue;
		if (drained >= 0)
			copy.path[request->rail].drained = drained != 0;
		else
			copy.pin = pin;
		if (drained == 0)
			copy.path[request->rail].apart = false; /* some ms later, at both ends */
		for (unsigned rail = 0; rail < d->conf.rails; rail++) {
			uint8_t now = peer->route.members[rail], then = pair_members(&copy, rail);
			bool carries = request->rail >= 0 && then >> request->rail & 1;

			plan.stays += drained > 0 ? carries : pin >= 0 && !carries;
			plan.moves += now != then;
			if (now != then && room_for(request, 2))
				say(request, "peer=%s;address=%u;from=%s;to=%s\n", peer->node->name, rail,
				    members_text(d, now, from), members_text(d, then, to));
		}
	}
	return plan;
}

static void record(struct request *request)
{
	event_write(&request->d->events, "request", ";action=%s;rail=%d;peer=%s;uid=%u;why=%s",
		    request->action, request->rail, request->peer ? request->peer : "", request->uid,
		    request->why ? request->why : "");
}

static void pin_all(struct request *request, int pin)
{
	struct daemon *d = request->d;

	for (unsigned i = 0; i < d->conf.nodes; i++) {
		if (!chosen(request, &d->peer[i]))
			continue;
		d->peer[i].pair.pin = pin;
		d->peer[i].next_look_ns = 0;
		moving_look(d, &d->peer[i]);
	}
}

static void change(struct request *request)
{
	bool drain = !strcmp(request->action, "drain"), undrain = !strcmp(request->action, "undrain");
	int pin = !strcmp(request->action, "move") ? request->rail : -1;
	struct plan planned = plan(request, pin, drain ? 1 : undrain ? 0 : -1);

	say(request, "moves=%u;stays=%u;done=%d\n", planned.moves, planned.stays, !request->dry);
	if (request->dry)
		return;
	record(request);
	if (drain || undrain)
		moving_drain(request->d, (unsigned)request->rail, drain);
	else
		pin_all(request, pin);
	if (!byhand_save(request->d))
		event_write(&request->d->events, "trouble", ";what=by_hand;why=%s", strerror(errno));
}

static void parse(struct request *request, char *text)
{
	char *rest;

	for (char *line = strtok_r(text, "\n", &rest); line; line = strtok_r(NULL, "\n", &rest)) {
		if (!strncmp(line, "do=", 3))
			request->action = line + 3;
		else if (!strncmp(line, "why=", 4) && strlen(line) < 260 && !strchr(line, ';'))
			request->why = line + 4;
		else if (!strncmp(line, "peer=", 5) && line[5])
			request->peer = line + 5;
		else if (!strncmp(line, "rail=", 5))
			request->rail = atoi(line + 5);
		else if (!strncmp(line, "from=", 5))
			request->from = (unsigned)strtoul(line + 5, NULL, 10);
		else if (!strcmp(line, "dry=1"))
			request->dry = true;
	}
}

static bool names_a_rail(struct request *request)
{
	if (request->rail >= 0 && (unsigned)request->rail < request->d->conf.rails)
		return true;
	say(request, "error=no such rail\n");
	return false;
}

static bool names_a_peer(struct request *request)
{
	for (unsigned i = 0; i < request->d->conf.nodes; i++)
		if (chosen(request, &request->d->peer[i]))
			return true;
	say(request, "error=no such peer\n");
	return false;
}

static void serve(struct request *request)
{
	const char *action = request->action;

	if (!strcmp(action, "show")) {
		show(request);
	} else if (!strcmp(action, "stop")) {
		say(request, "done=1\n");
		loop_stop();
	} else if (!strcmp(action, "unmove")) {
		if (names_a_peer(request))
			change(request);
	} else if (!strcmp(action, "drain") || !strcmp(action, "undrain")) {
		request->peer = NULL;
		if (names_a_rail(request))
			change(request);
	} else if (!strcmp(action, "move")) {
		if (names_a_rail(request) && names_a_peer(request))
			change(request);
	} else
		say(request, "error=unknown request\n");
}

static unsigned uid_of(struct msghdr *msg)
{
	for (struct cmsghdr *part = CMSG_FIRSTHDR(msg); part; part = CMSG_NXTHDR(msg, part)) {
		struct ucred who;

		if (part->cmsg_level == SOL_SOCKET && part->cmsg_type == SCM_CREDENTIALS) {
			memcpy(&who, CMSG_DATA(part), sizeof(who));
			return who.uid;
		}
	}
	return (unsigned)-1;
}

void control_serve(struct daemon *d)
{
	static struct request request;
	_Alignas(struct cmsghdr) char control[CMSG_SPACE(sizeof(struct ucred))];
	char text[REQUEST_BYTES];
	struct sockaddr_un from;
	struct iovec part = {text, sizeof(text) - 1};
	struct msghdr msg = {&from, sizeof(from), &part, 1, control, sizeof(control), 0};
	ssize_t got = recvmsg(d->control, &msg, MSG_DONTWAIT);

	if (got < 0)
		return;
	text[got] = '\0';
	memset(&request, 0, offsetof(struct request, answer) + 1);
	request.size = 0;
	request.d = d;
	request.action = "";
	request.rail = -1;
	request.uid = uid_of(&msg);
	parse(&request, text);
	serve(&request);
	if (msg.msg_namelen > sizeof(sa_family_t))
		sendto(d->control, request.answer, request.size, MSG_DONTWAIT, (struct sockaddr *)&from,
		       msg.msg_namelen);
}
