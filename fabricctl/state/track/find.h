/* MPI among the loaded objects: found at the first call, without any mpi.h. */
#ifndef FABRIC_FIND_H
#define FABRIC_FIND_H

typedef long word;
typedef word (*any_function)();

#define COLD __attribute__((cold, noinline))

/* NULL: no loaded object has it. */
void *find_symbol(const char *name);

/* The function, also kept in `to`; a program whose MPI has neither name is ended with a word. */
COLD any_function resolve(const char *profiled, const char *plain, any_function *to);

/* 1: there is only the function with plain counts. */
COLD int resolve_large(const char *profiled, any_function *to);

/* -1 where no MPI has it. */
word call(const char *name, word a, word b, word c, word d, word e);

#endif
