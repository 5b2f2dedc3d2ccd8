#include "siphash.h"

#include <endian.h>
#include <string.h>

struct lanes {
	uint64_t a, b, c, d;
};

static uint64_t turn(uint64_t value, unsigned by)
{
	return (value << by) | (value >> (64 - by));
}

static void mix(struct lanes *v)
{
	v->a += v->b;
	v->b = turn(v->b, 13) ^ v->a;
	v->a = turn(v->a, 32);
	v->c += v->d;
	v->d = turn(v->d, 16) ^ v->c;
	v->a += v->d;
	v->d = turn(v->d, 21) ^ v->a;
	v->c += v->b;
	v->b = turn(v->b, 17) ^ v->c;
	v->c = turn(v->c, 32);
}

static uint64_t word(const uint8_t *data, size_t size)
{
	uint64_t value = 0;

	memcpy(&value, data, size);
	return le64toh(value);
}

static void take(struct lanes *v, uint64_t value)
{
	v->d ^= value;
	mix(v);
	mix(v);
	v->a ^= value;
}

uint64_t clock_siphash(const uint8_t key[16], const uint8_t *data, size_t size)
{
	uint64_t low = word(key, 8), high = word(key + 8, 8);
	/* Initial constants of section 2.1. */
	struct lanes v = {
		low ^ 0x736f6d6570736575ULL,
		high ^ 0x646f72616e646f6dULL,
		low ^ 0x6c7967656e657261ULL,
		high ^ 0x7465646279746573ULL,
	};
	size_t whole = size & ~(size_t)7;

	for (size_t at = 0; at < whole; at += 8)
		take(&v, word(data + at, 8));
	take(&v, (uint64_t)size << 56 | word(data + whole, size - whole));
	v.c ^= 0xff;
	for (int i = 0; i < 4; i++)
		mix(&v);
	return v.a ^ v.b ^ v.c ^ v.d;
}
