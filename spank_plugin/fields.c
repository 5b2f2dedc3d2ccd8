/* key=value fields (docs/envelope.md), the same rules as fabricctl/fields.py; both run
 * tests/data/fields.txt. Whatever arrives is hostile until fields_decode has accepted it. */
#include "fabric.h"

#include <stdio.h>
#include <string.h>

#define KEY_MAX 32

static bool key_valid(const char *key, size_t length)
{
	if (length < 1 || length > KEY_MAX || key[0] < 'a' || key[0] > 'z')
		return false;
	for (size_t i = 1; i < length; i++)
		if (!((key[i] >= 'a' && key[i] <= 'z') || (key[i] >= '0' && key[i] <= '9') ||
		      key[i] == '_'))
			return false;
	return true;
}

/* Length of the UTF-8 character at the front, 0 when it is none or a control character.
 * Unicode 15, table 3-7: no overlong form, no surrogate, nothing past U+10FFFF. */
static size_t printable_length(const unsigned char *s, size_t left)
{
	static const struct {
		unsigned char first, last, low, high;
		size_t length;
	} shape[] = {
		{0x20, 0x7e, 0, 0, 1},	     {0xc2, 0xc2, 0xa0, 0xbf, 2}, /* not U+0080 to U+009F */
		{0xc3, 0xdf, 0x80, 0xbf, 2}, {0xe0, 0xe0, 0xa0, 0xbf, 3},
		{0xe1, 0xec, 0x80, 0xbf, 3}, {0xed, 0xed, 0x80, 0x9f, 3},
		{0xee, 0xef, 0x80, 0xbf, 3}, {0xf0, 0xf0, 0x90, 0xbf, 4},
		{0xf1, 0xf3, 0x80, 0xbf, 4}, {0xf4, 0xf4, 0x80, 0x8f, 4},
	};

	for (size_t i = 0; i < sizeof shape / sizeof *shape; i++) {
		if (s[0] < shape[i].first || s[0] > shape[i].last)
			continue;
		if (shape[i].length > left)
			return 0;
		for (size_t k = 1; k < shape[i].length; k++) {
			unsigned char low = k == 1 ? shape[i].low : 0x80;
			unsigned char high = k == 1 ? shape[i].high : 0xbf;

			if (s[k] < low || s[k] > high)
				return 0;
		}
		return shape[i].length;
	}
	return 0;
}

static bool value_valid(const char *value, size_t length)
{
	const unsigned char *s = (const unsigned char *)value;

	for (size_t at = 0, step; at < length; at += step)
		if ((step = printable_length(s + at, length - at)) == 0)
			return false;
	return true;
}

void fields_harmless(char *to, size_t size, const char *from, size_t length)
{
	size_t i;

	for (i = 0; i < length && i + 1 < size; i++)
		to[i] = from[i] >= 0x20 && from[i] <= 0x7e ? from[i] : '?';
	to[i] = '\0';
}

static int decode_one(struct fields *fields, char *part, size_t length, char why[FIELDS_WHY_SIZE])
{
	char *equals = memchr(part, '=', length), shown[41];
	size_t key_length = equals ? (size_t)(equals - part) : 0;

	if (!equals || !key_valid(part, key_length)) {
		fields_harmless(shown, sizeof shown, part, length);
		snprintf(why, FIELDS_WHY_SIZE, "fields: '%s' is not key=value", shown);
		return -1;
	}
	*equals = '\0';
	if (fields_get(fields, part)) {
		snprintf(why, FIELDS_WHY_SIZE, "fields: key '%s' is given twice", part);
		return -1;
	}
	if (!value_valid(equals + 1, length - key_length - 1)) {
		snprintf(why, FIELDS_WHY_SIZE, "fields: value of '%s' holds a control character",
			 part);
		return -1;
	}
	part[length] = '\0';
	fields->field[fields->count].key = part;
	fields->field[fields->count++].value = equals + 1;
	return 0;
}

int fields_decode(struct fields *fields, char *text, size_t length, char separator,
		  char why[FIELDS_WHY_SIZE])
{
	size_t count = 1, begin = 0;

	fields->count = 0;
	if (length > FIELDS_MAX_BYTES) {
		snprintf(why, FIELDS_WHY_SIZE, "fields: more than %d bytes", FIELDS_MAX_BYTES);
		return -1;
	}
	if (length == 0)
		return 0;
	if (text[length - 1] == separator)
		length--;
	for (size_t i = 0; i < length; i++)
		count += text[i] == separator;
	if (count > FIELDS_MAX) {
		snprintf(why, FIELDS_WHY_SIZE, "fields: %zu fields, at most %d are allowed", count,
			 FIELDS_MAX);
		return -1;
	}
	while (begin <= length) {
		char *end = memchr(text + begin, separator, length - begin);
		size_t part = end ? (size_t)(end - text) - begin : length - begin;

		if (decode_one(fields, text + begin, part, why))
			return -1;
		begin += part + 1;
	}
	return 0;
}

const char *fields_get(const struct fields *fields, const char *key)
{
	for (size_t i = 0; i < fields->count; i++)
		if (strcmp(fields->field[i].key, key) == 0)
			return fields->field[i].value;
	return NULL;
}

int fields_append(char *text, size_t size, char separator, const char *key, const char *value)
{
	size_t used = strlen(text), length = strlen(value);
	char between[2] = {used ? separator : '\0', '\0'};
	int wanted;

	if (!key_valid(key, strlen(key)) || strchr(value, separator) || !value_valid(value, length))
		return -1;
	wanted = snprintf(text + used, size - used, "%s%s=%s", between, key, value);
	if (wanted < 0 || (size_t)wanted >= size - used || used + wanted > FIELDS_MAX_BYTES) {
		text[used] = '\0';
		return -1;
	}
	return 0;
}
