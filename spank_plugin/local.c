/* sbatch, salloc and srun, on the submitting host: decides the job's mode and makes its envelope. */
#include "fabric_spank.h"

#include <dlfcn.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* The names under which Slurm hands our options down, with SLURM_SPANK_ before them to steps, and
 * from one component of a heterogeneous job to the next. */
static const char *const handed_down[] = {
	"_SLURM_SPANK_OPTION_fabric_fabric_resilience",
	"_SLURM_SPANK_OPTION_fabric_fabric_spares",
	"_SLURM_SPANK_OPTION_fabric_fabric_share",
	"_SLURM_SPANK_OPTION_fabric_fabric_clock",
};
static const char *const of_the_job[] = {ENVELOPE_VARIABLE, "FABRIC_MODE", "FABRIC_JOB_DIR"};

/* An optional plugin's return value does not stop the submission (plugstack.c,
 * _do_call_stack), so a wrong option ends the command here. */
static void refuse_submission(void)
{
	exit(EXIT_FAILURE);
}

/* The value of one of Slurm's own options, such as "nodes", when the user gave it; else NULL.
 * SPANK has no call for it. slurm_option_get and its kin are what cli_filter plugins are served
 * with; their signatures are the same from 22.05 to 26.05, and where they are not found the value
 * is not known. */
static char *slurm_own_option(const char *name)
{
	const char *program = program_invocation_short_name;
	void *opt = dlsym(RTLD_DEFAULT, "opt");
	bool (*is_set)(void *, const char *);
	char *(*get)(void *, const char *);

	if (strcmp(program, "sbatch") && strcmp(program, "salloc") && strcmp(program, "srun"))
		return NULL; /* what `opt` is elsewhere we do not know */
	*(void **)&is_set = dlsym(RTLD_DEFAULT, "slurm_option_isset");
	*(void **)&get = dlsym(RTLD_DEFAULT, "slurm_option_get");
	/* What get returns is Slurm's xmalloc, which free() must not see: a few bytes, once. */
	return opt && is_set && get && is_set(opt, name) ? get(opt, name) : NULL;
}

/* The fewest nodes that the job may get; 0: not known. */
static unsigned long nodes_asked(void)
{
	const char *nodes = slurm_own_option("nodes");

	return nodes ? strtoul(nodes, NULL, 10) : 0;
}

static const char *current_job(void)
{
	const char *job = getenv("SLURM_JOB_ID");

	if (spank_context() != S_CTX_LOCAL)
		return NULL; /* sbatch and salloc always make a new one */
	return job ? job : slurm_own_option("jobid");
}

static void unset_options(void)
{
	char name[80];

	for (size_t i = 0; i < sizeof handed_down / sizeof *handed_down; i++) {
		snprintf(name, sizeof name, "SLURM_SPANK_%s", handed_down[i]);
		unsetenv(name);
		unsetenv(handed_down[i]);
	}
}

/* Options belong to the job they were given to: what a surrounding job left in the environment
 * would otherwise become the options, and the envelope, of a job submitted from inside it. After
 * this, an option callback means that the user wrote the option. */
void local_forget_inherited(void)
{
	unset_options();
	if (spank_context() == S_CTX_LOCAL && getenv("SLURM_JOB_ID"))
		return; /* a step: the envelope is its job's */
	for (size_t i = 0; i < sizeof of_the_job / sizeof *of_the_job; i++)
		unsetenv(of_the_job[i]);
}

static enum mode decide_mode(const struct args *args)
{
	const char *text = getenv("FABRIC_RESILIENCE");
	enum mode mode = args->default_mode;

	if (options_given.mode_set)
		return options_given.mode;
	if (text && *text && options_mode("FABRIC_RESILIENCE", text, &mode))
		refuse_submission();
	return mode;
}

static uint32_t decide_spares(void)
{
	const char *text = getenv("FABRIC_SPARES");
	const char *source = options_given.spares_set ? "--fabric-spares" : "FABRIC_SPARES";
	unsigned long nodes = nodes_asked();
	uint32_t spares = options_given.spares;

	if (!options_given.spares_set && text && *text &&
	    options_spares("FABRIC_SPARES", text, &spares))
		refuse_submission();
	if (spares && nodes && spares >= nodes) {
		slurm_error("fabric: submit: %s=%u: the job asks for %lu node%s, and one at least "
			    "must be left to work",
			    source, spares, nodes, nodes == 1 ? "" : "s");
		refuse_submission();
	}
	return spares;
}

static void decide_share(char share[SHARE_SIZE])
{
	const char *text = getenv("FABRIC_SHARE");

	share[0] = '\0';
	if (options_given.share_set)
		memcpy(share, options_given.share, SHARE_SIZE);
	else if (text && *text && options_share("FABRIC_SHARE", text, share))
		refuse_submission();
}

static enum steer decide_clock(enum mode mode)
{
	const char *text = getenv("FABRIC_CLOCK");
	enum steer clock = STEER_PAGE;

	if (options_given.clock_set)
		clock = options_given.clock;
	else if (text && *text && options_clock("FABRIC_CLOCK", text, &clock))
		refuse_submission();
	if (clock != STEER_PAGE && mode != MODE_ON) {
		slurm_error("fabric: submit: %s=%s: needs --fabric-resilience=on: %s changes nothing "
			    "on nodes",
			    options_given.clock_set ? "--fabric-clock" : "FABRIC_CLOCK",
			    steer_name(clock), mode_name(mode));
		refuse_submission();
	}
	return clock;
}

static int hand_over(spank_t spank, const char *text)
{
	/* sbatch and salloc make the variable of the job control environment themselves; a job
	 * that srun starts would have none. */
	if (spank_context() == S_CTX_LOCAL && setenv(ENVELOPE_VARIABLE, text, 1))
		return -1;
	return spank_job_control_setenv(spank, ENVELOPE_NAME, text, 1) == ESPANK_SUCCESS ? 0 : -1;
}

static void say(const char *words)
{
	slurm_info("fabric: submit: %s", words);
}

/* One key for all components of a heterogeneous job. */
static void submit_job(spank_t spank, const struct args *args)
{
	static struct envelope envelope;
	static bool later_component;
	enum mode mode = decide_mode(args);
	char text[ENVELOPE_SIZE] = "";
	const char *why = NULL;

	if (later_component && mode != envelope.mode) {
		slurm_error("fabric: submit: --fabric-resilience=%s: give it to the first "
			    "component: all of a heterogeneous job have its mode",
			    mode_name(mode));
		refuse_submission();
	}
	if (mode == MODE_OFF) {
		if (options_given.spares_set && options_given.spares) {
			slurm_error("fabric: submit: --fabric-spares=%u: needs --fabric-resilience",
				    options_given.spares);
			refuse_submission();
		}
		if (options_given.share_set) {
			slurm_error("fabric: submit: --fabric-share=%s: needs --fabric-resilience",
				    options_given.share);
			refuse_submission();
		}
		if (options_given.clock_set && options_given.clock != STEER_PAGE)
			decide_clock(mode); /* which refuses */
		goto out;
	}
	envelope.mode = mode;
	envelope.spares = decide_spares();
	decide_share(envelope.share);
	envelope.clock = decide_clock(mode);
	envelope.refuse = args->refuse;
	memcpy(envelope.sample_hz, args->sample_hz, sizeof envelope.sample_hz);
	if (!later_component && envelope_new_key(&envelope))
		why = "no random numbers for its key";
	else if (envelope_text(&envelope, text) || hand_over(spank, text))
		why = "it cannot be put into the job's environment";
	if (why) {
		slurm_error("fabric: submit: envelope: %s", why);
		refuse_submission();
	}
	if (!later_component)
		hint_look(args->hint, nodes_asked(), slurm_own_option("switches") != NULL, say);
out:
	explicit_bzero(text, sizeof text);
	/* Spares, share and clock are those of the component they were given to, the mode is the whole job's. */
	options_given.spares_set = false;
	options_given.spares = 0;
	options_given.share_set = false;
	options_given.clock_set = false;
	later_component = true;
}

/* The envelope of the job around us, as it must be handed on: on nodes where Slurm has not yet run
 * the prolog (no PrologFlags=Alloc) the first step's srun brings its environment. */
static enum mode job_mode(spank_t spank)
{
	const char *inherited_text = getenv(ENVELOPE_VARIABLE);
	char *copy = inherited_text ? strdup(inherited_text) : NULL;
	size_t length = copy ? strlen(copy) : 0;
	struct envelope envelope = {.mode = MODE_OFF};
	char why[FIELDS_WHY_SIZE];

	if (!copy)
		goto out;
	if (envelope_parse(&envelope, copy, length, ';', why)) {
		slurm_error("fabric: step: %s: %s", ENVELOPE_VARIABLE, why);
		envelope.mode = MODE_OFF;
	} else {
		spank_job_control_setenv(spank, ENVELOPE_NAME, inherited_text, 1);
	}
	explicit_bzero(copy, length);
	explicit_bzero(envelope.key, sizeof envelope.key);
out:
	free(copy);
	return envelope.mode;
}

static void submit_step(spank_t spank, const char *job)
{
	enum mode mode = job_mode(spank);
	bool known = getenv("SLURM_JOB_ID") != NULL; /* else srun --jobid: another job's */

	if (options_given.spares_set) {
		slurm_error("fabric: step: --fabric-spares=%u: spares are the whole job's: give it "
			    "to sbatch or salloc",
			    options_given.spares);
		refuse_submission();
	}
	if (options_given.share_set) {
		slurm_error("fabric: step: --fabric-share=%s: the share is the whole job's: give it "
			    "to sbatch or salloc",
			    options_given.share);
		refuse_submission();
	}
	if (options_given.clock_set) {
		slurm_error("fabric: step: --fabric-clock=%s: the clock is the whole job's: give it "
			    "to sbatch or salloc",
			    steer_name(options_given.clock));
		refuse_submission();
	}
	if (!options_given.mode_set || !known || options_given.mode <= mode)
		return;
	if (mode == MODE_OFF)
		slurm_error("fabric: step: --fabric-resilience=%s: job %.20s was submitted "
			    "without it, and a step cannot add it",
			    mode_name(options_given.mode), job);
	else
		slurm_error("fabric: step: --fabric-resilience=%s: job %.20s was submitted with "
			    "%s, and a step cannot have more",
			    mode_name(options_given.mode), job, mode_name(mode));
	refuse_submission();
}

void local_submit(spank_t spank, const struct args *args)
{
	const char *job = current_job();

	/* The envelope says it all, and what the next component is given is its own. */
	unset_options();
	for (size_t i = 0; i < sizeof handed_down / sizeof *handed_down; i++)
		spank_job_control_unsetenv(spank, handed_down[i]);
	if (job)
		submit_step(spank, job);
	else
		submit_job(spank, args);
}
