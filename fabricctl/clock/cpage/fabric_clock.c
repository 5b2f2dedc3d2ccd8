/* libfabricclock: fabric_clock.h over the page. */
#include "fabric_clock.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "page.h"

struct fabric_clock {
	struct page page;
};

struct fabric_clock *fabric_clock_open(const char *file)
{
	char path[PATH_MAX];
	const char *dir = getenv("FABRIC_JOB_DIR");
	struct page *page = MAP_FAILED;
	struct stat about;
	int fd, error = 0;

	if (!file) {
		if (!dir || snprintf(path, sizeof(path), "%s/clock", dir) >= (int)sizeof(path)) {
			errno = ENOENT;
			return NULL;
		}
		file = path;
	}
	fd = open(file, O_RDONLY | O_CLOEXEC);
	if (fd < 0)
		return NULL;
	if (fstat(fd, &about) || about.st_size < (off_t)sizeof(*page))
		error = ENOTSUP;
	else
		page = mmap(NULL, sizeof(*page), PROT_READ, MAP_SHARED, fd, 0);
	if (!error && page == MAP_FAILED)
		error = errno;
	close(fd);
	if (!error && (page->magic != PAGE_MAGIC || page->version != PAGE_VERSION)) {
		munmap(page, sizeof(*page));
		error = ENOTSUP;
	}
	errno = error;
	return error ? NULL : (struct fabric_clock *)page;
}

void fabric_clock_close(struct fabric_clock *clock)
{
	if (clock)
		munmap(clock, sizeof(*clock));
}

int fabric_clock_now(const struct fabric_clock *clock, struct fabric_clock_reading *reading)
{
	if (page_read(&clock->page, 0, reading) == 0)
		return 0;
	errno = EAGAIN;
	return -1;
}

int fabric_clock_compare(
	const struct fabric_clock_reading *a, const struct fabric_clock_reading *b
)
{
	return a->latest_ns < b->earliest_ns ? -1 : a->earliest_ns > b->latest_ns ? 1 : 0;
}
