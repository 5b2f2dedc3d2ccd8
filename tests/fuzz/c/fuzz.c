/* The parsers in C of what others write, for libFuzzer, and for one run over files (-DREPLAY).
 * Which: -DTARGET='"wire"' and its like; with -DREPLAY the first argument names it, then files.
 * `make fuzz-c` builds and runs all; tests/unit/test_fuzz_c.py runs what is kept. */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "conf.h"
#include "fabric.h"
#include "fabric_clock.h"
#include "wire.h"

/* An exact copy with a zero behind it: the sanitizer sees the first byte after that. */
static char *copied(const uint8_t *data, size_t size)
{
	char *text = malloc(size + 1);

	memcpy(text, data, size);
	text[size] = '\0';
	return text;
}

/* As it came, and as a holder of the key would have sealed it. */
static void target_wire(const uint8_t *data, size_t size)
{
	static const uint8_t key[SIPHASH_KEY_BYTES] = "a key of 16 byt";
	uint8_t *sealed = malloc(size + 8), again[WIRE_MAX];
	struct wire wire;
	uint64_t tag;

	wire_decode(&wire, key, data, size);
	memcpy(sealed, data, size);
	for (size_t at = 8; at <= size; at += at < 48 ? 40 : 4) { /* the tag stands where the body ends */
		tag = siphash24(key, sealed, at);
		memcpy(sealed + at, &tag, 8);
		if (wire_decode(&wire, key, sealed, at + 8))
			wire_encode(&wire, key, again);
		memcpy(sealed, data, size);
	}
	free(sealed);
}

static void target_conf(const uint8_t *data, size_t size)
{
	char problem[160];
	struct conf conf;
	FILE *stream;

	if (!size)
		return;
	stream = fmemopen((void *)(uintptr_t)data, size, "r");
	conf_read(&conf, stream, problem, sizeof(problem));
	fclose(stream);
	free(conf.node);
}

static void target_envelope(const uint8_t *data, size_t size)
{
	for (int i = 0; i < 2; i++) {
		char why[FIELDS_WHY_SIZE], *text = copied(data, size), again[ENVELOPE_SIZE];
		struct envelope envelope;

		if (envelope_parse(&envelope, text, size, i ? ';' : '\n', why) == 0)
			envelope_text(&envelope, again);
		free(text);
	}
}

static void target_paths(const uint8_t *data, size_t size)
{
	char name[PATHS_NAME_SIZE], value[PATHS_VALUE_SIZE], *text = copied(data, size);
	const char *at = text;

	while (paths_next(&at, name, value))
		;
	free(text);
}

static void quiet(const char *message)
{
	(void)message;
}

static void target_args(const uint8_t *data, size_t size)
{
	char *text = copied(data, size), *rest = text, *words[32], *word;
	struct args args;
	int count = 0;

	while (count < 32 && (word = strsep(&rest, " \n")))
		words[count++] = word;
	args_parse(&args, count, words, quiet);
	args_allowed(&args);
	free(text);
}

/* The page of job time that an agent writes, read in a user's program. */
static void target_page(const uint8_t *data, size_t size)
{
	int fd = memfd_create("page", MFD_CLOEXEC);
	char path[32];
	struct fabric_clock_reading reading;
	struct fabric_clock *clock;

	if (fd < 0 || ftruncate(fd, 1 << 16) || write(fd, data, size) != (ssize_t)size)
		abort(); /* what the input lacks is zero */
	snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
	clock = fabric_clock_open(path);
	if (clock) {
		fabric_clock_now(clock, &reading);
		fabric_clock_close(clock);
	}
	close(fd);
}

static const struct {
	const char *name;
	void (*run)(const uint8_t *data, size_t size);
} targets[] = {
	{"wire", target_wire},   {"conf", target_conf}, {"envelope", target_envelope},
	{"paths", target_paths}, {"args", target_args}, {"page", target_page},
};

static void run(const char *name, const uint8_t *data, size_t size)
{
	for (size_t i = 0; i < sizeof(targets) / sizeof(targets[0]); i++)
		if (!strcmp(targets[i].name, name))
			targets[i].run(data, size);
}

#ifndef REPLAY
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	run(TARGET, data, size);
	return 0;
}
#else
int main(int ac, char *av[])
{
	static uint8_t data[1 << 16];

	for (int i = 2; i < ac; i++) {
		FILE *stream = fopen(av[i], "rb");
		size_t size = stream ? fread(data, 1, sizeof(data), stream) : 0;
		uint8_t *exact = malloc(size ? size : 1);

		if (!stream)
			return 2;
		fclose(stream);
		memcpy(exact, data, size);
		run(av[1], exact, size);
		free(exact);
	}
	printf("%d inputs\n", ac - 2);
	return 0;
}
#endif
