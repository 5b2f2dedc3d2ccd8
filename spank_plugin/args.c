/* plugstack.conf arguments, key=value. A mistake there must neither stop slurmd nor a user's
 * command: it is reported, the setting keeps its default, and life goes on. */
#include "fabric.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define MESSAGE_SIZE 400
#define KEY_LONGEST 11 /* allow_clock and the others fit */

static int set_default(struct args *args, const char *value)
{
	return mode_parse(value, &args->default_mode);
}

static int set_allow(struct args *args, const char *value)
{
	bool allowed[MODE_COUNT] = {[MODE_OFF] = true};
	const char *word = *value ? value : NULL; /* allow= alone: nothing but off */

	while (word) {
		const char *comma = strchr(word, ',');
		char name[10];
		enum mode mode;

		snprintf(name, sizeof name, "%.*s", comma ? (int)(comma - word) : 9, word);
		if (mode_parse(name, &mode))
			return -1;
		allowed[mode] = true;
		word = comma ? comma + 1 : NULL;
	}
	memcpy(args->allowed, allowed, sizeof allowed);
	return 0;
}

static int set_allow_clock(struct args *args, const char *value)
{
	bool allowed[STEER_COUNT] = {[STEER_PAGE] = true};

	for (const char *word = value; word;) {
		const char *comma = strchr(word, ',');
		char name[10];
		enum steer steer;

		snprintf(name, sizeof name, "%.*s", comma ? (int)(comma - word) : 9, word);
		if (steer_parse(name, &steer))
			return -1;
		allowed[steer] = true;
		word = comma ? comma + 1 : NULL;
	}
	memcpy(args->allowed_clock, allowed, sizeof allowed);
	return 0;
}

static int set_max_spares(struct args *args, const char *value)
{
	return spares_parse(value, &args->max_spares);
}

static int set_max_share(struct args *args, const char *value)
{
	return strchr(value, '-') ? -1 : share_parse(value, &args->max_share);
}

static int set_on_missing(struct args *args, const char *value)
{
	if (strcmp(value, "warn") && strcmp(value, "refuse"))
		return -1;
	args->refuse = strcmp(value, "refuse") == 0;
	return 0;
}

static int set_path(char path[RUN_DIR_SIZE], const char *value)
{
	if (value[0] != '/' || strlen(value) >= RUN_DIR_SIZE)
		return -1;
	snprintf(path, RUN_DIR_SIZE, "%s", value);
	return 0;
}

static int set_run_dir(struct args *args, const char *value)
{
	return set_path(args->run_dir, value);
}

static int set_hint(struct args *args, const char *value)
{
	return set_path(args->hint, value);
}

static int set_sample_hz(struct args *args, const char *value)
{
	if (!hz_valid(value))
		return -1;
	snprintf(args->sample_hz, sizeof args->sample_hz, "%.*s", HZ_SIZE - 1, value);
	return 0;
}

static const struct {
	const char *key, *wanted;
	int (*set)(struct args *args, const char *value);
} known[] = {
	{"default", "off, observe or on", set_default},
	{"allow", "a list of observe and on, with commas", set_allow},
	{"allow_clock", "a list of page, ptp and system, with commas", set_allow_clock},
	{"max_spares", "a number of nodes, 0 to 99999", set_max_spares},
	{"max_share", "a number of percent, 0 to 100", set_max_share},
	{"on_missing", "warn or refuse", set_on_missing},
	{"hint", "an absolute path", set_hint},
	{"run_dir", "an absolute path", set_run_dir},
	{"sample_hz", "a number, 0.1 to 100", set_sample_hz},
};
#define KNOWN (sizeof known / sizeof *known)

static size_t smallest(size_t a, size_t b, size_t c)
{
	size_t least = a < b ? a : b;

	return least < c ? least : c;
}

/* Levenshtein's edit distance, row by row; `right` is one of ours and short. */
static size_t distance(const char *left, size_t length, const char *right)
{
	size_t row[KEY_LONGEST + 1], columns = strlen(right);

	for (size_t j = 0; j <= columns; j++)
		row[j] = j;
	for (size_t i = 1; i <= length; i++) {
		size_t diagonal = row[0];

		row[0] = i;
		for (size_t j = 1; j <= columns; j++) {
			size_t above = row[j];
			size_t change = diagonal + (left[i - 1] != right[j - 1]);

			row[j] = smallest(above + 1, row[j - 1] + 1, change);
			diagonal = above;
		}
	}
	return row[columns];
}

static void unknown(const char *arg, size_t length, void (*report)(const char *message))
{
	char message[MESSAGE_SIZE], shown[41];
	size_t nearest = 0, best = SIZE_MAX;

	fields_harmless(shown, sizeof shown, arg, length);
	for (size_t i = 0; i < KNOWN && length <= sizeof shown; i++) {
		size_t now = distance(arg, length, known[i].key);

		if (now < best) {
			best = now;
			nearest = i;
		}
	}
	/* Half of the letters may be wrong: beyond that a guess misleads. */
	if (best <= strlen(known[nearest].key) / 2)
		snprintf(message, sizeof message,
			 "fabric: plugstack: unknown key '%s': did you mean '%s'?", shown,
			 known[nearest].key);
	else
		snprintf(message, sizeof message,
			 "fabric: plugstack: unknown key '%s': known are default, allow, "
			 "allow_clock, hint, max_spares, max_share, on_missing, run_dir, sample_hz",
			 shown);
	report(message);
}

static void parse_one(struct args *args, const char *arg, bool given[KNOWN],
		      void (*report)(const char *message))
{
	size_t length = strcspn(arg, "="), i;
	const char *value = arg[length] ? arg + length + 1 : "";
	char message[MESSAGE_SIZE], shown[81];

	for (i = 0; i < KNOWN; i++)
		if (strlen(known[i].key) == length && strncmp(known[i].key, arg, length) == 0)
			break;
	if (i == KNOWN) {
		unknown(arg, length, report);
		return;
	}
	fields_harmless(shown, sizeof shown, value, strlen(value));
	if (given[i])
		snprintf(message, sizeof message,
			 "fabric: plugstack: %s=%s: given twice, the first one counts",
			 known[i].key, shown);
	else if (known[i].set(args, value))
		snprintf(message, sizeof message, "fabric: plugstack: %s=%s: not %s; ignored",
			 known[i].key, shown, known[i].wanted);
	else
		message[0] = '\0';
	given[i] = true;
	if (message[0])
		report(message);
}

void args_parse(struct args *args, int ac, char *const av[], void (*report)(const char *message))
{
	bool given[KNOWN] = {false};
	char message[MESSAGE_SIZE];

	*args = (struct args){
		.default_mode = MODE_OFF,
		.allowed = {[MODE_OFF] = true, [MODE_OBSERVE] = true, [MODE_ON] = true},
		.max_spares = SPARES_LIMIT,
		.allowed_clock = {[STEER_PAGE] = true},
		.max_share = 50,
		.run_dir = "/run/fabricctl",
	};
	for (int i = 0; i < ac; i++)
		parse_one(args, av[i], given, report);
	if (!args->allowed[args->default_mode]) {
		snprintf(message, sizeof message,
			 "fabric: plugstack: default=%s: not among those that allow= names; off is "
			 "the default",
			 mode_name(args->default_mode));
		report(message);
		args->default_mode = MODE_OFF;
	}
}

const char *args_allowed(const struct args *args)
{
	if (args->allowed[MODE_OBSERVE])
		return args->allowed[MODE_ON] ? "off, observe, on" : "off, observe";
	return args->allowed[MODE_ON] ? "off, on" : "off";
}

const char *args_allowed_clock(const struct args *args)
{
	if (args->allowed_clock[STEER_PTP])
		return args->allowed_clock[STEER_SYSTEM] ? "page, ptp, system" : "page, ptp";
	return args->allowed_clock[STEER_SYSTEM] ? "page, system" : "page";
}
