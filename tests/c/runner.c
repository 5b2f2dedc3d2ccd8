/* Lets Python tests call the plugin's code that does not need Slurm: one line in, one line out.
 * Texts travel in hexadecimal. Built with the address and undefined-behaviour sanitizers, which
 * end it with a status of their own. */
#include "fabric.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define LINE_MAX_SIZE (4 * FIELDS_MAX_BYTES)

/* An exact-size copy on the heap, so that the sanitizer sees the first byte past its end. */
static char *from_hex(const char *hex, size_t *length)
{
	char *bytes;

	*length = strlen(hex) / 2;
	bytes = malloc(*length + 1);
	for (size_t i = 0; i < *length; i++)
		sscanf(hex + 2 * i, "%2hhx", (unsigned char *)bytes + i);
	bytes[*length] = '\0';
	return bytes;
}

static void put_hex(const char *text)
{
	for (; *text; text++)
		printf("%02x", (unsigned char)*text);
}

static void decode(char separator, const char *hex)
{
	char why[FIELDS_WHY_SIZE] = "";
	struct fields fields;
	size_t length;
	char *text = from_hex(hex, &length);

	if (fields_decode(&fields, text, length, separator, why)) {
		printf("refused %s\n", why);
	} else {
		printf("ok");
		for (size_t i = 0; i < fields.count; i++) {
			printf(" ");
			put_hex(fields.field[i].key);
			printf("=");
			put_hex(fields.field[i].value);
		}
		printf("\n");
	}
	free(text);
}

static void append(char separator, const char *key_hex, const char *value_hex)
{
	char *text = calloc(1, FIELDS_MAX_BYTES + 1);
	size_t length;
	char *key = from_hex(key_hex, &length), *value = from_hex(value_hex, &length);

	if (fields_append(text, FIELDS_MAX_BYTES + 1, separator, key, value))
		printf("refused\n");
	else
		put_hex(text), printf("\n");
	free(text);
	free(key);
	free(value);
}

static void envelope(char separator, const char *hex)
{
	char why[FIELDS_WHY_SIZE] = "";
	struct envelope it;
	size_t length;
	char *text = from_hex(hex, &length);

	if (envelope_parse(&it, text, length, separator, why))
		printf("refused %s\n", why);
	else
		printf("ok %s %s %u %s %s %s %s\n", mode_name(it.mode), it.key, it.spares,
		       it.refuse ? "refuse" : "warn", it.sample_hz[0] ? it.sample_hz : "-",
		       it.share[0] ? it.share : "-", steer_name(it.clock));
	free(text);
}

static int lines(const char *what)
{
	char *line = malloc(LINE_MAX_SIZE);

	while (fgets(line, LINE_MAX_SIZE, stdin)) {
		char *rest = line, separator, *first, *second;
		const char *word = strsep(&rest, " \n");

		separator = (char)strtol(word, NULL, 16);
		first = strsep(&rest, " \n");
		second = strsep(&rest, " \n");
		if (strcmp(what, "fields") == 0)
			decode(separator, first ? first : "");
		else if (strcmp(what, "envelope") == 0)
			envelope(separator, first ? first : "");
		else
			append(separator, first ? first : "", second ? second : "");
	}
	free(line);
	return 0;
}

static int make_envelope(char *const av[])
{
	struct envelope it = {.refuse = strcmp(av[2], "refuse") == 0};
	char text[ENVELOPE_SIZE];

	if (mode_parse(av[0], &it.mode) || spares_parse(av[1], &it.spares) ||
	    envelope_new_key(&it))
		return 1;
	snprintf(it.sample_hz, sizeof it.sample_hz, "%s", av[3]);
	snprintf(it.share, sizeof it.share, "%s", av[4] ? av[4] : "");
	if (av[4] && av[5] && steer_parse(av[5], &it.clock))
		return 1;
	if (envelope_text(&it, text))
		return 1;
	puts(text);
	return 0;
}

static void report(const char *message)
{
	printf("%s\n", message);
}

static int show_args(int ac, char *const av[])
{
	struct args args;

	args_parse(&args, ac, av, report);
	printf("default=%s allow=(%s) allow_clock=(%s) max_spares=%u max_share=%u on_missing=%s run_dir=%s sample_hz=%s hint=%s\n",
	       mode_name(args.default_mode), args_allowed(&args), args_allowed_clock(&args), args.max_spares, args.max_share,
	       args.refuse ? "refuse" : "warn", args.run_dir, args.sample_hz, args.hint);
	return 0;
}

static int look(char *const av[])
{
	static const char *const words[] = {"ok", "starting", "not"};
	struct protect view;

	protect_look(&view, av[0], (uint32_t)strtoul(av[1], NULL, 10));
	printf("here=%s why=%s missing=%s unplugged=%s others=%u%s%s\n", words[view.here], view.why,
	       view.missing, view.unplugged, view.others,
	       view.notice[0] ? " notice=" : "", view.notice);
	return 0;
}

static int mark(char *const av[])
{
	int run = rundir_open(av[0]), rc = -1;
	uint32_t job = (uint32_t)strtoul(av[1], NULL, 10);

	if (run >= 0)
		rc = rundir_mark_step(run, job, av[2]);
	printf("%s\n", rc ? strerrorname_np(errno) : "ok");
	if (run >= 0)
		close(run);
	return 0;
}

static int wait_paths(char *const av[])
{
	static const char *const states[] = {"off", "absent", "starting", "ready"};
	int run = rundir_open(av[0]);
	uint32_t job = (uint32_t)strtoul(av[1], NULL, 10);

	puts(states[paths_wait(run, job, (unsigned)strtoul(av[2], NULL, 10))]);
	if (run >= 0)
		close(run);
	return 0;
}

static void say(const char *words)
{
	puts(words);
}

static int hint(char *const av[])
{
	hint_look(av[0], strtoul(av[1], NULL, 10), *av[2] == 'y', say);
	return 0;
}

static int split_paths(const char *hex)
{
	char name[PATHS_NAME_SIZE], value[PATHS_VALUE_SIZE];
	size_t length;
	char *text = from_hex(hex, &length);
	const char *at = text;

	while (paths_next(&at, name, value))
		printf("%s=%s\n", name, value);
	free(text);
	return 0;
}

int main(int ac, char *av[])
{
	const char *what = ac > 1 ? av[1] : "";

	setvbuf(stdout, NULL, _IOFBF, 1 << 20);
	if (!strcmp(what, "fields") || !strcmp(what, "append") || !strcmp(what, "envelope"))
		return lines(what);
	if (!strcmp(what, "make") && ac >= 6 && ac <= 8)
		return make_envelope(av + 2);
	if (!strcmp(what, "args"))
		return show_args(ac - 2, av + 2);
	if (!strcmp(what, "look") && ac == 4)
		return look(av + 2);
	if (!strcmp(what, "mark") && ac == 5)
		return mark(av + 2);
	if (!strcmp(what, "paths-wait") && ac == 5)
		return wait_paths(av + 2);
	if (!strcmp(what, "hint") && ac == 5)
		return hint(av + 2);
	if (!strcmp(what, "paths-split") && ac == 3)
		return split_paths(av[2]);
	fprintf(stderr, "usage: runner fields|append|envelope|make|args|look|mark|hint|paths-... ...\n");
	return 2;
}
