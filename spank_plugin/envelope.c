/* The job's envelope (docs/envelope.md): made once at submit, read by every step. */
#include "fabric.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/random.h>

int envelope_new_key(struct envelope *envelope)
{
	unsigned char bytes[ENVELOPE_KEY_BYTES];
	ssize_t got;

	do /* at most 256 bytes come whole or not at all: getrandom(2) */
		got = getrandom(bytes, sizeof bytes, 0);
	while (got < 0 && errno == EINTR);
	if (got != (ssize_t)sizeof bytes)
		return -1;
	for (size_t i = 0; i < sizeof bytes; i++)
		snprintf(envelope->key + 2 * i, 3, "%02x", bytes[i]);
	explicit_bzero(bytes, sizeof bytes);
	return 0;
}

int envelope_text(const struct envelope *envelope, char text[ENVELOPE_SIZE])
{
	const char *missing = envelope->refuse ? "refuse" : "warn";
	char spares[12];

	snprintf(spares, sizeof spares, "%u", envelope->spares);
	text[0] = '\0';
	if (fields_append(text, ENVELOPE_SIZE, ';', "v", "1") ||
	    fields_append(text, ENVELOPE_SIZE, ';', "mode", mode_name(envelope->mode)) ||
	    fields_append(text, ENVELOPE_SIZE, ';', "key", envelope->key) ||
	    fields_append(text, ENVELOPE_SIZE, ';', "spares", spares) ||
	    fields_append(text, ENVELOPE_SIZE, ';', "on_missing", missing))
		return -1;
	if (envelope->sample_hz[0] &&
	    fields_append(text, ENVELOPE_SIZE, ';', "sample_hz", envelope->sample_hz))
		return -1;
	if (envelope->share[0] &&
	    fields_append(text, ENVELOPE_SIZE, ';', "share", envelope->share))
		return -1;
	return envelope->clock == STEER_PAGE ? 0
					     : fields_append(text, ENVELOPE_SIZE, ';', "clock",
							     steer_name(envelope->clock));
}

static int wrong(char why[FIELDS_WHY_SIZE], const char *key)
{
	snprintf(why, FIELDS_WHY_SIZE, "envelope: %s is missing or wrong", key);
	return -1;
}

static int take(struct envelope *envelope, const struct fields *fields, char why[FIELDS_WHY_SIZE])
{
	const char *version = fields_get(fields, "v"), *mode = fields_get(fields, "mode");
	const char *key = fields_get(fields, "key"), *spares = fields_get(fields, "spares");
	const char *missing = fields_get(fields, "on_missing");
	const char *hz = fields_get(fields, "sample_hz"), *share = fields_get(fields, "share");
	const char *clock = fields_get(fields, "clock");
	uint32_t guarantee;

	if (!version || strcmp(version, "1"))
		return wrong(why, "version (this side knows 1)");
	if (!mode || mode_parse(mode, &envelope->mode) || envelope->mode == MODE_OFF)
		return wrong(why, "mode");
	if (!key || strlen(key) != sizeof envelope->key - 1 ||
	    key[strspn(key, "0123456789abcdef")])
		return wrong(why, "key");
	if (spares && spares_parse(spares, &envelope->spares))
		return wrong(why, "spares");
	if (missing && strcmp(missing, "warn") && strcmp(missing, "refuse"))
		return wrong(why, "on_missing");
	if (hz && !hz_valid(hz))
		return wrong(why, "sample_hz");
	if (share && share_parse(share, &guarantee))
		return wrong(why, "share");
	if (clock && steer_parse(clock, &envelope->clock))
		return wrong(why, "clock");
	memcpy(envelope->key, key, sizeof envelope->key);
	envelope->refuse = missing && strcmp(missing, "refuse") == 0;
	snprintf(envelope->sample_hz, sizeof envelope->sample_hz, "%s", hz ? hz : "");
	snprintf(envelope->share, sizeof envelope->share, "%s", share ? share : "");
	return 0;
}

int envelope_parse(struct envelope *envelope, char *text, size_t length, char separator,
		   char why[FIELDS_WHY_SIZE])
{
	struct fields fields;

	memset(envelope, 0, sizeof *envelope);
	if (fields_decode(&fields, text, length, separator, why))
		return -1;
	return take(envelope, &fields, why);
}
