/* Link failover's part of run_dir (docs/envelope.md): whether the job's traffic is looked after on
 * this node, and the variables that lead communication libraries onto the rails. */
#include "fabric.h"

#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#define LOOK_MS 20
/* fabric-pathd is there within a second or two of the announcement; one that is not there by then
 * will not come in time for this step. */
#define START_S 12

static enum paths_state state_of_text(char *text, size_t length)
{
	char why[FIELDS_WHY_SIZE];
	struct fields fields;
	const char *state;

	if (fields_decode(&fields, text, length, '\n', why))
		return PATHS_OFF;
	state = fields_get(&fields, "state");
	if (state && !strcmp(state, "ready"))
		return PATHS_READY;
	return state && !strcmp(state, "starting") ? PATHS_STARTING : PATHS_OFF;
}

static enum paths_state look(int run, uint32_t job)
{
	time_t since_s = rundir_announced_s(run, job);
	bool may_start = since_s && time(NULL) - since_s <= START_S && rundir_service_lives(run);
	enum paths_state state = PATHS_STARTING;
	int directory = rundir_open_job_paths(run, job);
	size_t length = 0;
	char *text = directory < 0 ? NULL : rundir_read(directory, "state", &length);

	if (text)
		state = state_of_text(text, length);
	free(text);
	if (directory >= 0)
		close(directory);
	return state == PATHS_STARTING && !may_start ? PATHS_ABSENT : state;
}

enum paths_state paths_wait(int run, uint32_t job, unsigned wait_ms)
{
	const struct timespec pause = {.tv_nsec = LOOK_MS * 1000000L};
	int paths = rundir_open_paths(run);

	if (paths < 0)
		return PATHS_OFF; /* the site wants none on this node */
	close(paths);
	for (unsigned waited = 0;; waited += LOOK_MS) {
		enum paths_state state = look(run, job);

		if (state != PATHS_STARTING || waited >= wait_ms)
			return state;
		nanosleep(&pause, NULL);
	}
}

static bool name_valid(const char *name, size_t length)
{
	if (length < 1 || length >= PATHS_NAME_SIZE || name[0] < 'A' || name[0] > 'Z')
		return false;
	for (size_t i = 0; i < length; i++)
		if (!((name[i] >= 'A' && name[i] <= 'Z') || (name[i] >= 'a' && name[i] <= 'z') ||
		      (name[i] >= '0' && name[i] <= '9') || name[i] == '_'))
			return false;
	return true;
}

/* Not one that decides what a program runs. */
static bool name_harmless(const char *name)
{
	static const char *const refused[] = {"LD_", "PATH", "SLURM_", "PYTHON", "BASH_"};

	for (size_t i = 0; i < sizeof refused / sizeof *refused; i++)
		if (!strncmp(name, refused[i], strlen(refused[i])))
			return false;
	return true;
}

bool paths_next(const char **at, char name[PATHS_NAME_SIZE], char value[PATHS_VALUE_SIZE])
{
	while (**at) {
		const char *word = *at + strspn(*at, " \n"), *equals;
		size_t length = strcspn(word, " \n"), before, after;

		*at = word + length;
		equals = memchr(word, '=', length);
		before = equals ? (size_t)(equals - word) : 0;
		after = equals ? length - before - 1 : 0;
		if (!name_valid(word, before) || after >= PATHS_VALUE_SIZE)
			continue;
		memcpy(name, word, before);
		name[before] = '\0';
		fields_harmless(value, after + 1, word + before + 1, after);
		if (name_harmless(name))
			return true;
	}
	return false;
}
