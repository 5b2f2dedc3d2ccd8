/* What the files of the plugin show each other. The contract with the rest of the system is
 * docs/envelope.md; nothing here knows of anything else. Exported names begin with their file's. */
#ifndef FABRIC_H
#define FABRIC_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>
#include <time.h>

/* --- mode.c: what a job can ask for, in rising order ---------------------------------------- */

enum mode { MODE_OFF, MODE_OBSERVE, MODE_ON, MODE_COUNT };

const char *mode_name(enum mode mode);
int mode_parse(const char *text, enum mode *mode); /* 0, or -1 when it is none of them */

#define SPARES_LIMIT 99999 /* docs/envelope.md; five digits */
#define HZ_SIZE 8	   /* "100.000" and its end */

#define SHARE_SIZE 8 /* "100-100" and its end */

/* What follows the job's time: nothing but its page, the NICs' clocks, CLOCK_REALTIME. */
enum steer { STEER_PAGE, STEER_PTP, STEER_SYSTEM, STEER_COUNT };

const char *steer_name(enum steer steer);
int steer_parse(const char *text, enum steer *steer); /* 0, or -1 when it is none of them */

int spares_parse(const char *text, uint32_t *spares);
/* A guarantee of 0 to 100 percent, or guarantee-ceiling. */
int share_parse(const char *text, uint32_t *guarantee);
bool hz_valid(const char *text); /* 0.1 to 100, at most three decimals */

/* --- fields.c: the codec of fabricctl/fields.py --------------------------------------------- */

#define FIELDS_MAX 64
#define FIELDS_MAX_BYTES 65536
#define FIELDS_WHY_SIZE 160

struct fields {
	size_t count;
	struct {
		const char *key, *value;
	} field[FIELDS_MAX];
};

/* Splits text[0..length) in place; text[length] must be writable. On -1 `why` says what is wrong,
 * fit for a terminal whatever the text holds. */
int fields_decode(struct fields *fields, char *text, size_t length, char separator,
		  char why[FIELDS_WHY_SIZE]);
const char *fields_get(const struct fields *fields, const char *key); /* NULL: not there */
/* Appends one field to the string `text`; -1 when decode would refuse it or it does not fit. */
int fields_append(char *text, size_t size, char separator, const char *key, const char *value);
void fields_harmless(char *to, size_t size, const char *from, size_t length); /* for messages */

/* --- envelope.c ----------------------------------------------------------------------------- */

#define ENVELOPE_SIZE 512 /* the longest that we make has 151 bytes */
#define ENVELOPE_KEY_BYTES 32

struct envelope {
	enum mode mode;
	char key[2 * ENVELOPE_KEY_BYTES + 1];
	uint32_t spares;
	bool refuse;
	char sample_hz[HZ_SIZE]; /* "": the site's */
	char share[SHARE_SIZE]; /* "": none was asked for */
	enum steer clock;
};

int envelope_new_key(struct envelope *envelope);
int envelope_text(const struct envelope *envelope, char text[ENVELOPE_SIZE]);
/* Splits text in place like fields_decode; ';' in the environment, '\n' in the job directory. */
int envelope_parse(struct envelope *envelope, char *text, size_t length, char separator,
		   char why[FIELDS_WHY_SIZE]);

/* --- args.c: plugstack.conf ----------------------------------------------------------------- */

#define RUN_DIR_SIZE 256

struct args {
	enum mode default_mode;
	bool allowed[MODE_COUNT];
	uint32_t max_spares, max_share;
	bool refuse;
	char run_dir[RUN_DIR_SIZE];
	char sample_hz[HZ_SIZE];
	bool allowed_clock[STEER_COUNT];
	char hint[RUN_DIR_SIZE]; /* "": none is looked at */
};

/* Each thing wrong is reported and left out; what remains is always usable. */
void args_parse(struct args *args, int ac, char *const av[], void (*report)(const char *message));
/* "off, observe": what users of this site may ask for. */
const char *args_allowed(const struct args *args);
const char *args_allowed_clock(const struct args *args);

/* --- hint.c: what the site has to say to who submits ---------------------------------------- */

#define HINT_SIZE 400

/* `nodes` 0: not known. Says at most two lines. */
void hint_look(const char *path, unsigned long nodes, bool switches_given,
	       void (*say)(const char *words));

/* --- rundir.c: the node's run_dir, by descriptor; every int is -1 with errno when it fails -- */

int rundir_open(const char *run_dir);
int rundir_open_job(int run, uint32_t job);
/* A whole regular file and a zero byte after it, to be freed; never more than fields_decode takes
 * and one byte, so that it refuses what is longer. NULL with errno. */
char *rundir_read(int at, const char *name, size_t *length);
bool rundir_service_lives(int run);
/* When prolog or service made this job known here, seconds of CLOCK_REALTIME; 0: they did not. */
time_t rundir_announced_s(int run, uint32_t job);
/* Whether the job is here and its envelope was given to that user. */
bool rundir_is_of(int run, uint32_t job, uid_t uid);
int rundir_mark_step(int run, uint32_t job, const char *step);

/* run_dir/paths: the node has link failover; -1 with errno when not there. */
int rundir_open_paths(int run);
/* paths/<job>: root's; -1 with errno when not there. */
int rundir_open_job_paths(int run, uint32_t job);

/* --- paths.c: link failover of the job on this node ------------------------------------------ */

#define PATHS_NAME_SIZE 64
#define PATHS_VALUE_SIZE 256

enum paths_state {
	PATHS_OFF,    /* none for this job, or none on this node: that was decided */
	PATHS_ABSENT, /* nothing on this node has decided about the job, or will */
	PATHS_STARTING,
	PATHS_READY
};

/* Waits until fabric-pathd of the job says that it is ready, or that it will not be. At once where
 * the node has none, or the job is no new one. */
enum paths_state paths_wait(int run, uint32_t job, unsigned wait_ms);
/* The next NAME=value of a text of them, with spaces or line breaks between; false: no more. What
 * is malformed, or names a variable that decides what programs run, is passed over. */
bool paths_next(const char **at, char name[PATHS_NAME_SIZE], char value[PATHS_VALUE_SIZE]);

/* --- protect.c: is this node, are the others protected? ------------------------------------- */

#define PROTECT_LIST_SIZE 200 /* of a host list, what fits in a message */

enum protect_here { PROTECT_OK, PROTECT_STARTING, PROTECT_NOT };

struct protect {
	enum protect_here here;
	char why[FIELDS_WHY_SIZE];	   /* of PROTECT_NOT */
	char notice[PROTECT_LIST_SIZE];	   /* what else its agent has to say, "" for nothing */
	char missing[PROTECT_LIST_SIZE];   /* nodes without an agent, "" when none or not known */
	char unplugged[PROTECT_LIST_SIZE]; /* nodes with steps that the plugin did not see */
	uint32_t others;		   /* at least as many as both lists name */
};

void protect_look(struct protect *view, const char *run_dir, uint32_t job);

#endif
