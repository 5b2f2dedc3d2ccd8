/* The file in which a rank's block lies, and what names it. */
#ifndef FABRIC_HOME_H
#define FABRIC_HOME_H

#include "track.h"

/* A block of this process in shared memory, NULL where no directory is given or it is refused, which
 * is told on stderr. `more`: in its name, for a second one. */
struct track_block *new_block(const char *more);

/* Empties a block and writes its header: all but who the rank is, and the magic, without which
 * nobody reads it. */
struct track_header *fill_head(struct track_block *made, const char *library);

/* Which start of the program in its job this is: of `fabricctl run`, else Slurm's step, else 0. */
uint32_t launch_number(void);

#endif
