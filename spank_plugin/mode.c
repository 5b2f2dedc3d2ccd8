/* The values that options, plugstack.conf and the envelope share. */
#include "fabric.h"

#include <stdlib.h>
#include <string.h>

static const char *const names[MODE_COUNT] = {"off", "observe", "on"};

const char *mode_name(enum mode mode)
{
	return names[mode];
}

int mode_parse(const char *text, enum mode *mode)
{
	for (int i = 0; i < MODE_COUNT; i++)
		if (strcmp(text, names[i]) == 0) {
			*mode = (enum mode)i;
			return 0;
		}
	return -1;
}

static const char *const steers[STEER_COUNT] = {"page", "ptp", "system"};

const char *steer_name(enum steer steer)
{
	return steers[steer];
}

int steer_parse(const char *text, enum steer *steer)
{
	for (int i = 0; i < STEER_COUNT; i++)
		if (strcmp(text, steers[i]) == 0) {
			*steer = (enum steer)i;
			return 0;
		}
	return -1;
}

int spares_parse(const char *text, uint32_t *spares)
{
	size_t digits = strspn(text, "0123456789");

	if (digits < 1 || digits > 5 || text[digits])
		return -1;
	*spares = (uint32_t)strtoul(text, NULL, 10);
	return 0;
}

static bool percent(const char *text, size_t digits, uint32_t *value)
{
	unsigned long found;

	if (digits < 1 || digits > 3)
		return false;
	found = strtoul(text, NULL, 10);
	if (found > 100)
		return false;
	*value = (uint32_t)found;
	return true;
}

int share_parse(const char *text, uint32_t *guarantee)
{
	size_t digits = strspn(text, "0123456789"), more = 0;
	uint32_t ceiling = 100;

	if (!percent(text, digits, guarantee))
		return -1;
	if (text[digits] == '-') {
		more = 1 + strspn(text + digits + 1, "0123456789");
		if (!percent(text + digits + 1, more - 1, &ceiling))
			return -1;
	}
	return text[digits + more] || !ceiling || *guarantee > ceiling ? -1 : 0;
}

bool hz_valid(const char *text)
{
	size_t whole = strspn(text, "0123456789"), length = whole;
	long milli;
	char thousandths[4] = "000";

	if (whole < 1 || whole > 3)
		return false;
	if (text[whole] == '.') {
		size_t decimals = strspn(text + whole + 1, "0123456789");

		if (decimals < 1 || decimals > 3)
			return false;
		memcpy(thousandths, text + whole + 1, decimals);
		length += 1 + decimals;
	}
	if (text[length])
		return false;
	/* In whole numbers: strtod would read the decimal point of the user's locale. */
	milli = strtol(text, NULL, 10) * 1000 + strtol(thousandths, NULL, 10);
	return milli >= 100 && milli <= 100000;
}
