/* What the site has to say to who submits: the text that `fabricctl place --publish` writes, looked
 * at when a protected job is submitted. What is absent, old or damaged says nothing. */
#include "fabric.h"

#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>

#define HINT_OLD_S (15 * 60)

static bool is_fresh(const char *path)
{
	struct stat st;
	time_t now = time(NULL);

	return stat(path, &st) == 0 && st.st_mtime <= now + 60 && now - st.st_mtime <= HINT_OLD_S;
}

static unsigned long under_one_switch(const struct fields *hint)
{
	const char *text = fields_get(hint, "under_one_switch");

	return text && *text >= '0' && *text <= '9' ? strtoul(text, NULL, 10) : 0;
}

void hint_look(const char *path, unsigned long nodes, bool switches_given,
	       void (*say)(const char *words))
{
	char words[HINT_SIZE], shown[HINT_SIZE - 40], why[FIELDS_WHY_SIZE];
	const char *rails;
	struct fields hint;
	size_t length;
	char *text = *path && is_fresh(path) ? rundir_read(AT_FDCWD, path, &length) : NULL;

	if (!text)
		return;
	if (!fields_decode(&hint, text, length, '\n', why)) {
		rails = fields_get(&hint, "rails");
		if (nodes > 1 && nodes <= under_one_switch(&hint) && !switches_given) {
			snprintf(words, sizeof words,
				 "hint: %lu nodes fit under one switch: --switches=1@10:00 waits up "
				 "to ten minutes for that",
				 nodes);
			say(words);
		}
		if (rails && *rails) {
			fields_harmless(shown, sizeof shown, rails, strlen(rails));
			snprintf(words, sizeof words, "hint: %s", shown);
			say(words);
		}
	}
	free(text);
}
