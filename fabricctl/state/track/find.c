#include "find.h"

#include <dlfcn.h>
#include <link.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct search {
	const char *name;
	void *found;
};

static int look_in(struct dl_phdr_info *info, size_t size, void *given)
{
	struct search *search = given;
	void *object;

	(void)size;
	if (!info->dlpi_name || !*info->dlpi_name || !strstr(info->dlpi_name, "mpi"))
		return 0;
	object = dlopen(info->dlpi_name, RTLD_LAZY | RTLD_NOLOAD);
	if (!object)
		return 0;
	search->found = dlsym(object, search->name);
	dlclose(object); /* it stays: NOLOAD only counted it */
	return search->found != NULL;
}

/* Symbols of an MPI that Python loaded for itself alone are not in the global scope. */
void *find_symbol(const char *name)
{
	struct search search = {.name = name, .found = dlsym(RTLD_DEFAULT, name)};

	if (!search.found)
		dl_iterate_phdr(look_in, &search);
	return search.found;
}

any_function resolve(const char *profiled, const char *plain, any_function *to)
{
	void *found = find_symbol(profiled);

	if (!found)
		found = dlsym(RTLD_NEXT, plain);
	if (!found) {
		fprintf(stderr, "fabric: track: %s: no MPI library in this program has it\n",
			profiled);
		abort();
	}
	*to = (any_function)found;
	return *to;
}

int resolve_large(const char *profiled, any_function *to)
{
	char plain[64];
	void *found = find_symbol(profiled);

	if (found) {
		*to = (any_function)found;
		return 0;
	}
	snprintf(plain, sizeof plain, "%.*s", (int)(strlen(profiled) - 2), profiled);
	resolve(plain, plain + 1, to);
	return 1;
}

word call(const char *name, word a, word b, word c, word d, word e)
{
	any_function function = (any_function)find_symbol(name);

	return function ? function(a, b, c, d, e) : -1;
}
