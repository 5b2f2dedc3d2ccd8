/* What happened, as lines of `key=value;...` (fabricctl/fields.py) in the job's `events` file. */
#ifndef FABRIC_EVENT_H
#define FABRIC_EVENT_H

#include <stdbool.h>
#include <stdint.h>

#define EVENT_LINE_MAX 1024
#define EVENT_FILE_MAX (16u << 20) /* bytes; what comes after is counted, and told at the end */

struct events {
	int fd; /* -1: nobody listens */
	uint64_t written, dropped;
};

bool event_open(struct events *events, const char *path);

/* Begins a line with the event's name and both clocks; `format` gives the rest: ";key=value...". */
void event_write(struct events *events, const char *name, const char *format, ...)
	__attribute__((format(printf, 3, 4)));

uint64_t mono_ns(void);
uint64_t real_ns(void);

#endif
