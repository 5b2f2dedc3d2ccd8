#include "event.h"

#include <fcntl.h>
#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

static uint64_t read_clock(clockid_t clock)
{
	struct timespec time;

	clock_gettime(clock, &time);
	return (uint64_t)time.tv_sec * 1000000000u + (uint64_t)time.tv_nsec;
}

uint64_t mono_ns(void)
{
	return read_clock(CLOCK_MONOTONIC);
}

uint64_t real_ns(void)
{
	return read_clock(CLOCK_REALTIME);
}

bool event_open(struct events *events, const char *path)
{
	struct stat status;

	events->fd = open(path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC | O_NOFOLLOW, 0644);
	if (events->fd >= 0 && fstat(events->fd, &status) == 0)
		events->written = (uint64_t)status.st_size;
	return events->fd >= 0;
}

void event_write(struct events *events, const char *name, const char *format, ...)
{
	char line[EVENT_LINE_MAX];
	va_list args;
	int head, tail;
	ssize_t done;

	head = snprintf(line, sizeof(line), "event=%s;time_mono_ns=%" PRIu64 ";time_real_ns=%" PRIu64,
			name, mono_ns(), real_ns());
	va_start(args, format);
	tail = vsnprintf(line + head, sizeof(line) - (size_t)head - 1, format, args);
	va_end(args);
	if (events->fd < 0 || tail < 0 || (size_t)(head + tail) >= sizeof(line) - 1 ||
	    events->written + (uint64_t)(head + tail) >= EVENT_FILE_MAX) {
		events->dropped++;
		return;
	}
	line[head + tail] = '\n';
	done = write(events->fd, line, (size_t)(head + tail) + 1);
	if (done == head + tail + 1)
		events->written += (uint64_t)done;
	else
		events->dropped++; /* a full file system must not stop the mover */
}
