#include "conf.h"

#include "mover.h"

#include <ctype.h>
#include <errno.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>

#define MAX_WORDS 8
#define LINE_BYTES 1024

struct reader {
	struct conf *conf;
	char **word;
	int words;
	char *problem;
	size_t size;
};

static bool wrong(struct reader *reader, const char *why)
{
	snprintf(reader->problem, reader->size, "configuration: %.40s: %s", reader->word[0], why);
	return false;
}

static bool number(struct reader *reader, int at, unsigned long low, unsigned long high,
		   unsigned long *value)
{
	char *end;

	if (at >= reader->words || !isdigit((unsigned char)reader->word[at][0]))
		return wrong(reader, "needs a number");
	errno = 0;
	*value = strtoul(reader->word[at], &end, 10);
	if (errno || *end || *value < low || *value > high)
		return wrong(reader, "number out of range");
	return true;
}

static bool number_into(struct reader *reader, unsigned low, unsigned high, unsigned *value)
{
	unsigned long given;

	if (!number(reader, 1, low, high, &given))
		return false;
	*value = (unsigned)given;
	return true;
}

static bool text_into(struct reader *reader, int at, char *to, size_t size)
{
	if (at >= reader->words || strlen(reader->word[at]) >= size)
		return wrong(reader, "a text is missing or too long");
	strcpy(to, reader->word[at]);
	return true;
}

static bool read_key(struct reader *reader)
{
	const char *text = reader->words == 2 ? reader->word[1] : "";

	if (strlen(text) != 2 * SIPHASH_KEY_BYTES)
		return wrong(reader, "needs 32 hexadecimal digits");
	for (size_t i = 0; i < SIPHASH_KEY_BYTES; i++) {
		unsigned byte;

		if (sscanf(text + 2 * i, "%2x", &byte) != 1)
			return wrong(reader, "needs 32 hexadecimal digits");
		reader->conf->key[i] = (uint8_t)byte;
	}
	return true;
}

static bool read_ports(struct reader *reader)
{
	for (int i = 0; i < CONF_PORTS; i++) {
		unsigned long value;

		if (!number(reader, i + 1, 1, 65535, &value))
			return false;
		reader->conf->port[i] = (uint16_t)value;
	}
	return true;
}

static bool read_pool(struct reader *reader, struct net *pool, int family, unsigned low,
		      unsigned high)
{
	if (reader->words != 2 || !net_parse(reader->word[1], pool) || pool->ip.family != family ||
	    pool->bits < low || pool->bits > high)
		return wrong(reader, "needs a network of its family and of a possible size");
	return true;
}

/* rail NAME FABRIC ADDRESS4/BITS|- ADDRESS6|- */
static bool read_rail(struct reader *reader)
{
	struct conf *conf = reader->conf;
	struct conf_rail *rail = &conf->rail[conf->rails];

	if (reader->words != 5 || conf->rails == MAX_RAILS)
		return wrong(reader, "needs interface, device, both addresses, and at most 8 of it");
	if (!text_into(reader, 1, rail->name, sizeof(rail->name)) ||
	    !text_into(reader, 2, rail->fabric, sizeof(rail->fabric)))
		return false;
	if (strcmp(reader->word[3], "-") != 0 &&
	    (!net_parse(reader->word[3], &rail->net4) || rail->net4.ip.family != AF_INET))
		return wrong(reader, "is not an IPv4 address with its prefix length");
	if (strcmp(reader->word[4], "-") != 0 &&
	    (!ip_parse(reader->word[4], &rail->ip6) || rail->ip6.family != AF_INET6))
		return wrong(reader, "is not an IPv6 address");
	conf->rails++;
	return true;
}

/* node NAME ADDRESS|-   in the order of the job's node list */
static bool read_node(struct reader *reader)
{
	struct conf *conf = reader->conf;
	struct conf_node *node;

	if (reader->words != 3 || conf->nodes >= MAX_PEERS)
		return wrong(reader, "needs name and address, and at most 8000 of it");
	if (conf->nodes % 64 == 0) {
		node = realloc(conf->node, (conf->nodes + 64) * sizeof(*node));
		if (!node)
			return wrong(reader, "out of memory");
		conf->node = node;
	}
	node = &conf->node[conf->nodes];
	memset(node, 0, sizeof(*node));
	if (!text_into(reader, 1, node->name, sizeof(node->name)))
		return false;
	if (strcmp(reader->word[2], "-") != 0 && !ip_parse(reader->word[2], &node->manage))
		return wrong(reader, "is not an address");
	conf->nodes++;
	return true;
}

/* rate NAME KILOBITS   of a rail that was named before */
static bool read_rate(struct reader *reader)
{
	unsigned long kilobits;

	if (reader->words != 3 || !number(reader, 2, 1, 10000000000ul, &kilobits))
		return wrong(reader, "needs a rail and kilobits a second");
	for (unsigned i = 0; i < reader->conf->rails; i++)
		if (!strcmp(reader->conf->rail[i].name, reader->word[1]))
			reader->conf->rail[i].bytes_per_s = (uint64_t)kilobits * 125;
	return true;
}

/* share UID GUARANTEE CEILING CLASS   in permille */
static bool read_share(struct reader *reader)
{
	unsigned long uid, guarantee, ceiling, class;

	if (reader->words != 5 || !number(reader, 1, 0, 4294967294ul, &uid) ||
	    !number(reader, 2, 0, SHARE_WHOLE, &guarantee) ||
	    !number(reader, 3, 1, SHARE_WHOLE, &ceiling) ||
	    !number(reader, 4, 0, SHARE_CLASSES - 1, &class))
		return wrong(reader, "needs uid, guarantee, ceiling and class");
	reader->conf->share = (struct share){(unsigned)uid, (uint16_t)guarantee, (uint16_t)ceiling,
					     (uint8_t)class, false};
	return true;
}

/* group LEVEL PATH */
static bool read_group(struct reader *reader)
{
	unsigned long level;

	if (reader->words != 3 || !number(reader, 1, 1, 255, &level))
		return wrong(reader, "needs level and path of a control group");
	reader->conf->group_level = (unsigned)level;
	return text_into(reader, 2, reader->conf->group, sizeof(reader->conf->group));
}

static bool read_job(struct reader *reader)
{
	return number(reader, 1, 1, 4294967295ul, &reader->conf->job);
}

static bool read_manage(struct reader *reader)
{
	if (reader->words != 2 || !ip_parse(reader->word[1], &reader->conf->manage))
		return wrong(reader, "is not an address");
	return true;
}

static bool read_line(struct reader *reader)
{
	struct conf *conf = reader->conf;
	const char *word = reader->word[0];

	if (!strcmp(word, "job"))
		return read_job(reader);
	if (!strcmp(word, "key"))
		return read_key(reader);
	if (!strcmp(word, "ports"))
		return read_ports(reader);
	if (!strcmp(word, "manage"))
		return read_manage(reader);
	if (!strcmp(word, "pool4"))
		return read_pool(reader, &conf->pool4, AF_INET, 4, 20);
	if (!strcmp(word, "pool6"))
		return read_pool(reader, &conf->pool6, AF_INET6, 48, 48);
	if (!strcmp(word, "rail"))
		return read_rail(reader);
	if (!strcmp(word, "node"))
		return read_node(reader);
	if (!strcmp(word, "rate"))
		return read_rate(reader);
	if (!strcmp(word, "group"))
		return read_group(reader);
	if (!strcmp(word, "share"))
		return read_share(reader);
	if (!strcmp(word, "self"))
		return number_into(reader, 0, MAX_PEERS, &conf->self);
	if (!strcmp(word, "own"))
		return conf->own = number_into(reader, 0, 4294967294u, &conf->uid);
	if (!strcmp(word, "rto_min_ms"))
		return number_into(reader, 0, 1000, &conf->rto_min_ms);
	if (!strcmp(word, "congestion"))
		return text_into(reader, 1, conf->congestion, sizeof(conf->congestion));
	if (!strcmp(word, "interval_us"))
		return number_into(reader, 500, 1000000, &conf->interval_us);
	if (!strcmp(word, "budget_pps"))
		return number_into(reader, 100, 1000000, &conf->budget_pps);
	if (!strcmp(word, "pace_us"))
		return number_into(reader, 0, 1000000, &conf->pace_us);
	if (!strcmp(word, "reroute_us"))
		return number_into(reader, 0, 1000000, &conf->reroute_us);
	if (!strcmp(word, "ready_wait_s"))
		return number_into(reader, 1, 600, &conf->ready_wait_s);
	if (!strcmp(word, "hold_ms"))
		return number_into(reader, 100, 600000, &conf->hold_ms);
	if (!strcmp(word, "hold_max_ms"))
		return number_into(reader, 100, 3600000, &conf->hold_max_ms);
	if (!strcmp(word, "dir"))
		return text_into(reader, 1, conf->dir, sizeof(conf->dir));
	if (!strcmp(word, "leases"))
		return text_into(reader, 1, conf->leases, sizeof(conf->leases));
	if (!strcmp(word, "off"))
		return text_into(reader, 1, conf->off, sizeof(conf->off));
	if (!strcmp(word, "watch"))
		return text_into(reader, 1, conf->watch, sizeof(conf->watch));
	return wrong(reader, "is not known");
}

static bool complete(struct reader *reader)
{
	const struct conf *conf = reader->conf;
	static char *end[] = {"end"};

	reader->word = end;
	if (!conf->job || !conf->port[0] || !conf->dir[0] || !conf->leases[0])
		return wrong(reader, "job, ports, dir or leases is missing");
	if (!conf->manage.family || conf->self >= conf->nodes)
		return wrong(reader, "manage is missing, or self is not one of the nodes");
	if (conf->off[0])
		return true;
	if (conf->rails < 2 || (!conf->fabric && !conf->own))
		return wrong(reader, "fewer than two rails, or neither a pool nor own addresses");
	return true;
}

bool conf_read(struct conf *conf, FILE *stream, char *problem, size_t size)
{
	char line[LINE_BYTES], *word[MAX_WORDS], *rest;
	struct reader reader = {conf, word, 0, problem, size};

	memset(conf, 0, sizeof(*conf));
	conf->rto_min_ms = 4;
	conf->interval_us = 4000;
	conf->budget_pps = 4000;
	conf->ready_wait_s = 10;
	conf->hold_ms = 800;
	conf->hold_max_ms = 60000;
	while (fgets(line, sizeof(line), stream)) {
		reader.words = 0;
		for (char *at = strtok_r(line, " \n", &rest); at && reader.words < MAX_WORDS;
		     at = strtok_r(NULL, " \n", &rest))
			word[reader.words++] = at;
		if (!reader.words)
			continue;
		if (!strcmp(word[0], "end")) {
			conf->fabric = conf->pool4.ip.family || conf->pool6.ip.family;
			return complete(&reader);
		}
		if (!read_line(&reader))
			return false;
	}
	snprintf(problem, size, "configuration: ended without `end`");
	return false;
}
