/* What the files that talk to Slurm show each other; the rest (fabric.h) knows nothing of it. */
#ifndef FABRIC_SPANK_H
#define FABRIC_SPANK_H

#include "fabric.h"

#include <slurm/spank.h>

/* docs/envelope.md: the name in the job control environment, and what steps see of it. */
#define ENVELOPE_NAME "FABRIC_ENVELOPE"
#define ENVELOPE_VARIABLE "SLURM_SPANK_FABRIC_ENVELOPE"

/* --- options.c: --fabric-resilience and what goes with it---------------------------------- */

struct options {
	bool mode_set, spares_set, share_set, clock_set;
	enum mode mode;
	uint32_t spares;
	char share[SHARE_SIZE];
	enum steer clock;
};
extern struct options options_given;

void options_register(spank_t spank, const struct args *args);
/* Check one value against the site's limits; `source` names where the user wrote it. */
int options_mode(const char *source, const char *text, enum mode *mode);
int options_spares(const char *source, const char *text, uint32_t *spares);
int options_share(const char *source, const char *text, char share[SHARE_SIZE]);
int options_clock(const char *source, const char *text, enum steer *clock);

/* --- local.c: sbatch, salloc, srun ---------------------------------------------------------- */

void local_forget_inherited(void);
void local_submit(spank_t spank, const struct args *args);

/* --- remote.c: slurmstepd ------------------------------------------------------------------- */

void remote_begin(spank_t spank, const struct args *args); /* root, before the tasks */
void remote_tell_begin(void);				    /* stderr is the user's from here on */
void remote_refuse_task(void);				    /* in the task, before its program */
void remote_task_ended(const struct args *args);

#endif
