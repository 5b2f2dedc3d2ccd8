/* Whose packet is it? What the filters of a rail's queue (slice.h) ask for each one: BPF programs. */
#ifndef FABRIC_FILTER_H
#define FABRIC_FILTER_H

#include <stdbool.h>
#include <stdint.h>

/* The job's control group (version 2), in memory that its filter reads. */
struct filter_group {
	uint64_t id; /* 0: it is not there */
	uint32_t level; /* below the root of the hierarchy, which is 0 */
	uint32_t seen; /* it was there once: until then all that the user sends is the job's */
};

/* NULL with errno. `map` is for filter_load_job and not needed afterwards. */
struct filter_group *filter_group_make(int *map);

/* Takes the group that is at `path` now, or notes that there is none: Slurm makes a job's group with
 * its first step, and another one when all steps had ended. */
void filter_group_find(struct filter_group *group, const char *path);

/* A program, -1 with errno. Its answer for the user's packets, of the group alone with `map` >= 0, is
 * `class`; for all others: ask the next filter. Needs CAP_BPF (before Linux 5.8 CAP_SYS_ADMIN). */
int filter_load_job(unsigned uid, uint32_t class, int map);
int filter_load_control(uint32_t class);

#endif
