/* One macro for the C tests: says where, and makes the program fail. */
#ifndef CHECK_H
#define CHECK_H

#include <stdio.h>

static int check_failures;

#define CHECK(what)                                                                      \
	do {                                                                             \
		if (!(what)) {                                                           \
			printf("%s:%d: %s: %s\n", __FILE__, __LINE__, __func__, #what);  \
			check_failures++;                                                \
		}                                                                        \
	} while (0)

#endif
