/* Checkpoints of programs in C, C++ and Fortran: files that a command makes safe (docs/checkpoints.md).
 *
 * Every rank writes its state into files in its own directory and commits them as a step; after a
 * restart it gets them back. Link with -lfabricckpt. Of one thread at a time. */
#ifndef FABRIC_CKPT_H
#define FABRIC_CKPT_H

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* This rank's directory: $FABRIC_CKPT_DIR, else one below $TMPDIR or /tmp of its own, which is made.
 * NULL, with errno set, when it cannot be. */
const char *fabric_ckpt_dir(void);

/* The files in the directory are the state of `step`; returns when they are safe on other nodes: 0.
 * Else the exit status of `fabricctl ckpt commit` (65: damaged, 71: no room, no keeper), or -1. */
int fabric_ckpt_commit(uint64_t step);

/* Writes the newest step that all ranks have into the directory: 0, and which step; 66: there is
 * none, begin at step 0 (*step is 0 then). Else as above. `before` not 0: only an older step; to be
 * called by all ranks when one of them could not have the newest. */
int fabric_ckpt_restore(uint64_t *step, uint64_t before);

/* The program ended well: all its checkpoints in memory are forgotten, and the files in a directory
 * that fabric_ckpt_dir made below $TMPDIR or /tmp. By all ranks. As above. */
int fabric_ckpt_done(void);

#ifdef __cplusplus
}
#endif
#endif
