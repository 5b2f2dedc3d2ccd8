/* slurmstepd, on a node of the job: marks the step, sets its environment, and tells its user where
 * the job is not protected. Nothing here fails a step, but for on_missing=refuse. */
#include "fabric_spank.h"

#include <net/if.h>
#include <slurm/slurm.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define HET_GROUPS_MAX 128 /* MAX_HET_JOB_COMPS of Slurm */
#define REFUSED 78 /* EX_CONFIG, docs/envelope.md */
#define PATHS_VARIABLE "FABRIC_PATHS" /* what we set, so that a step inside can tell it from the user's */
#define PATHS_LIST_SIZE 4096
#define PATHS_WAIT_MS 10000

static struct {
	uint32_t job, node_id, tasks, ended;
	bool asked;  /* this step is to be protected */
	bool refuse; /* and must not run without */
	char node[64];
	struct protect view, told;
} step;

static const char *step_name(uint32_t id, char number[16])
{
	if (id == SLURM_BATCH_SCRIPT)
		return "batch";
	if (id == SLURM_EXTERN_CONT)
		return "extern";
	if (id == SLURM_INTERACTIVE_STEP)
		return "interactive";
	snprintf(number, 16, "%u", id);
	return number;
}

static int envelope_of_environment(spank_t spank, struct envelope *envelope)
{
	char text[ENVELOPE_SIZE], why[FIELDS_WHY_SIZE];
	int rc = -1;

	if (spank_getenv(spank, ENVELOPE_VARIABLE, text, sizeof text) != ESPANK_SUCCESS)
		return -1;
	rc = envelope_parse(envelope, text, strlen(text), ';', why);
	if (rc)
		slurm_error("fabric: step: envelope: %s", why);
	explicit_bzero(text, sizeof text);
	return rc;
}

/* The job directory's copy, for steps that carry none: srun --jobid from elsewhere. */
static int envelope_of_node(int run, uint32_t job, struct envelope *envelope)
{
	int job_dir = rundir_open_job(run, job), rc = -1;
	char *text = NULL, why[FIELDS_WHY_SIZE];
	size_t length = 0;

	if (job_dir < 0)
		return -1;
	text = rundir_read(job_dir, "envelope", &length);
	if (text)
		rc = envelope_parse(envelope, text, length, '\n', why);
	close(job_dir);
	if (text)
		explicit_bzero(text, length);
	free(text);
	return rc;
}

/* What the step is to have: the job's mode, or less where srun was told so or the site allows the
 * node's agents less (agent.max_mode: the service lowers the node's copy). */
static enum mode decide(spank_t spank, int run, const struct args *args)
{
	struct envelope envelope = {.mode = MODE_OFF}, here = {.mode = MODE_OFF};
	bool carried = envelope_of_environment(spank, &envelope) == 0;
	bool known = run >= 0 && envelope_of_node(run, step.job, &here) == 0;
	enum mode mode;

	if (!carried && known) {
		envelope = here;
	} else if (!carried) {
		/* Neither: the option alone tells, as in a job of srun with --export=NONE. */
		envelope.mode = options_given.mode_set ? options_given.mode : MODE_OFF;
		envelope.refuse = args->refuse;
	}
	step.refuse = envelope.refuse || args->refuse;
	mode = envelope.mode;
	if (known && here.mode < mode)
		mode = here.mode;
	if (options_given.mode_set && options_given.mode < mode)
		mode = options_given.mode;
	explicit_bzero(&envelope, sizeof envelope);
	explicit_bzero(&here, sizeof here);
	return mode;
}

/* A job id from the user's environment, 0 for none. */
static uint32_t job_of_variable(spank_t spank, const char *name)
{
	char text[12];

	if (spank_getenv(spank, name, text, sizeof text) != ESPANK_SUCCESS || !*text ||
	    text[strspn(text, "0123456789")])
		return 0;
	return (uint32_t)strtoul(text, NULL, 10);
}

/* Steps of a heterogeneous job carry its leader's id on the nodes of every component, but the
 * prolog announced the component's own. The environment says which there are; whose they are is
 * read from the node. */
static void find_component(spank_t spank, int run)
{
	uid_t uid = (uid_t)-1;
	char name[40];

	if (rundir_announced_s(run, step.job) ||
	    spank_get_item(spank, S_JOB_UID, &uid) != ESPANK_SUCCESS)
		return;
	for (int group = 0; group < HET_GROUPS_MAX; group++) {
		uint32_t job;

		snprintf(name, sizeof name, "SLURM_JOB_ID_HET_GROUP_%d", group);
		job = job_of_variable(spank, name);
		if (!job)
			return;
		if (rundir_is_of(run, job, uid)) {
			step.job = job;
			return;
		}
	}
}

/* What the prolog is not told: of which array or heterogeneous job this job is a part. The name of
 * an empty file beside the marks of the steps says it. */
static void mark_family(spank_t spank, int run)
{
	uint32_t array = 0, task = 0, leader = job_of_variable(spank, "SLURM_JOB_ID_HET_GROUP_0");
	char name[40];

	if (spank_get_item(spank, S_JOB_ARRAY_ID, &array) == ESPANK_SUCCESS && array &&
	    spank_get_item(spank, S_JOB_ARRAY_TASK_ID, &task) == ESPANK_SUCCESS &&
	    task < NO_VAL) {
		snprintf(name, sizeof name, "array:%u_%u", array, task);
		rundir_mark_step(run, step.job, name);
	}
	/* Slurm numbers the components' jobs in sequence (heterogeneous_jobs.html). */
	if (leader && leader <= step.job && step.job - leader < HET_GROUPS_MAX) {
		snprintf(name, sizeof name, "het:%u+%u", leader, step.job - leader);
		rundir_mark_step(run, step.job, name);
	}
}

static void set_environment(spank_t spank, enum mode mode, const char *run_dir)
{
	char job_dir[RUN_DIR_SIZE + 24];

	/* A step that is off may have inherited both from the batch step. */
	spank_unsetenv(spank, "FABRIC_MODE");
	spank_unsetenv(spank, "FABRIC_JOB_DIR");
	if (mode == MODE_OFF)
		return;
	snprintf(job_dir, sizeof job_dir, "%s/jobs/%u", run_dir, step.job);
	spank_setenv(spank, "FABRIC_MODE", mode_name(mode), 1);
	spank_setenv(spank, "FABRIC_JOB_DIR", job_dir, 1);
}

static bool devices_are_here(const char *list)
{
	char device[IF_NAMESIZE];

	while (*list) {
		size_t length = strcspn(list, ",");

		if (!length || length >= sizeof device)
			return false;
		memcpy(device, list, length);
		device[length] = '\0';
		if (!if_nametoindex(device))
			return false;
		list += length + (list[length] == ',');
	}
	return true;
}

/* Whether what leads Open MPI onto the rails would do so on this node. */
static bool rails_are_here(const char *list)
{
	char name[PATHS_NAME_SIZE], value[PATHS_VALUE_SIZE];

	while (paths_next(&list, name, value))
		if (!strcmp(name, "OMPI_MCA_btl_tcp_if_include") && !devices_are_here(value))
			return false;
	return true;
}

/* What the step around us was given: of its node, and not the user's wish. Whether it was kept: a
 * node on which nothing looks after the paths keeps it where it fits. */
static bool keep_paths(spank_t spank, bool wanted)
{
	char list[PATHS_LIST_SIZE], now[PATHS_VALUE_SIZE];
	char name[PATHS_NAME_SIZE], value[PATHS_VALUE_SIZE];
	const char *at = list;

	if (spank_getenv(spank, PATHS_VARIABLE, list, sizeof list) != ESPANK_SUCCESS)
		return false;
	if (wanted && rails_are_here(list))
		return true;
	while (paths_next(&at, name, value))
		if (spank_getenv(spank, name, now, sizeof now) == ESPANK_SUCCESS &&
		    !strcmp(now, value))
			spank_unsetenv(spank, name);
	spank_unsetenv(spank, PATHS_VARIABLE);
	return false;
}

static void set_paths(spank_t spank, const char *text)
{
	char list[PATHS_LIST_SIZE] = "", name[PATHS_NAME_SIZE], value[PATHS_VALUE_SIZE];
	size_t used = 0;

	while (paths_next(&text, name, value)) {
		char there[4];
		spank_err_t found = spank_getenv(spank, name, there, sizeof there);
		int more;

		if (found != ESPANK_ENV_NOEXIST)
			continue; /* the user's, whatever its length */
		more = snprintf(list + used, sizeof list - used, "%s%s=%s", used ? " " : "", name,
				value);
		if (more < 0 || (size_t)more >= sizeof list - used)
			break;
		if (spank_setenv(spank, name, value, 0) == ESPANK_SUCCESS)
			used += (size_t)more;
		list[used] = '\0';
	}
	if (used)
		spank_setenv(spank, PATHS_VARIABLE, list, 1);
}

/* Leads the job's communication onto the rails. On a node that is not protected, too: its ranks
 * would offer addresses that the others do not connect to, and Open MPI waits for ever then. It
 * takes what the step around it was given, or what its service last found its own rails to be. */
static void lead_paths(spank_t spank, int run, bool wanted)
{
	enum paths_state state = wanted ? paths_wait(run, step.job, PATHS_WAIT_MS) : PATHS_OFF;
	bool own = state == PATHS_READY;
	bool kept = keep_paths(spank, wanted && !own);
	size_t length = 0;
	char *text = NULL;
	int directory;

	if (kept || state == PATHS_OFF)
		return;
	directory = own ? rundir_open_job_paths(run, step.job) : rundir_open_paths(run);
	if (directory >= 0) {
		text = rundir_read(directory, "env", &length);
		close(directory);
	}
	if (text && (own || rails_are_here(text)))
		set_paths(spank, text);
	free(text);
}

void remote_begin(spank_t spank, const struct args *args)
{
	uint32_t step_id = 0;
	int run = rundir_open(args->run_dir);
	const char *name;
	char number[16];
	enum mode mode;

	if (spank_get_item(spank, S_JOB_ID, &step.job) != ESPANK_SUCCESS ||
	    spank_get_item(spank, S_JOB_STEPID, &step_id) != ESPANK_SUCCESS)
		goto out;
	spank_get_item(spank, S_JOB_NODEID, &step.node_id);
	spank_get_item(spank, S_JOB_LOCAL_TASK_COUNT, &step.tasks);
	if (gethostname(step.node, sizeof step.node - 1))
		snprintf(step.node, sizeof step.node, "this node");
	step.node[strcspn(step.node, ".")] = '\0';
	if (run >= 0)
		find_component(spank, run);
	name = step_name(step_id, number);
	/* Whatever the environment says: a job that the prolog did not announce has no agent that
	 * would look for marks. */
	if (run >= 0 && rundir_announced_s(run, step.job) &&
	    rundir_mark_step(run, step.job, name))
		slurm_error("fabric: step: %s/steps/%u/%s: %m", args->run_dir, step.job, name);
	if (run >= 0 && rundir_announced_s(run, step.job))
		mark_family(spank, run);
	mode = decide(spank, run, args);
	set_environment(spank, mode, args->run_dir);
	step.asked = mode != MODE_OFF && step_id != SLURM_EXTERN_CONT;
	lead_paths(spank, run, step.asked && mode == MODE_ON);
	if (step.asked)
		protect_look(&step.view, args->run_dir, step.job);
out:
	if (run >= 0)
		close(run);
}

/* Each thing once. Of the other nodes, every node could tell: as many as there are nodes in need
 * of telling, and one, are enough, for one of these is not among them. */
static void tell(void)
{
	const struct protect *view = &step.view;

	if (view->here == PROTECT_NOT && step.told.here != PROTECT_NOT)
		slurm_spank_log("fabric: step: %s is not protected: %s", step.node, view->why);
	if (*view->notice && strcmp(view->notice, step.told.notice))
		slurm_spank_log("fabric: step: %s: %s", step.node, view->notice);
	if (step.node_id <= view->others) {
		if (*view->missing && strcmp(view->missing, step.told.missing))
			slurm_spank_log("fabric: step: %s not protected: no agent was heard from "
					"there",
					view->missing);
		if (*view->unplugged && strcmp(view->unplugged, step.told.unplugged))
			slurm_spank_log("fabric: step: %s not protected: steps ran there without "
					"the plugin (absent, or built for another Slurm)",
					view->unplugged);
	}
	step.told = *view;
}

static bool refused(void)
{
	return step.asked && step.refuse &&
	       (step.view.here == PROTECT_NOT || *step.view.missing || *step.view.unplugged);
}

void remote_tell_begin(void)
{
	if (!step.asked)
		return;
	tell();
	if (refused())
		slurm_spank_log("fabric: step: %s: no task is started, because this site wants "
				"none without protection (on_missing=refuse)",
				step.node);
}

void remote_refuse_task(void)
{
	/* Not a return value: Slurm heeds that of a required plugin only, and calls it a failed
	 * launch, which may drain the node. */
	if (refused())
		_exit(REFUSED);
}

void remote_task_ended(const struct args *args)
{
	if (!step.asked || ++step.ended < step.tasks || refused())
		return;
	protect_look(&step.view, args->run_dir, step.job);
	tell();
}
