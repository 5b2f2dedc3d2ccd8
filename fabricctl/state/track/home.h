/* The file in which a rank's block lies, and what names it. */
#ifndef FABRIC_HOME_H
#define FABRIC_HOME_H

#include "track.h"

/* A block of this process in shared memory, NULL where no directory is given or it is refused, which
 * is told on stderr. */
struct track_block *new_block(void);

/* When this process was started, in clock ticks since boot (proc(5), starttime); 0: not known. */
uint64_t own_start_ticks(void);

/* Which start of the program in its job this is: of `fabricctl run`, else Slurm's step, else 0. */
uint32_t launch_number(void);

/* As Slurm says it; "0" outside a step. */
const char *step_name(void);

#endif
