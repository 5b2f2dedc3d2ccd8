/* libfabricstate.so: what checkpoints do with bytes: copy and checksum in one pass, exclusive or,
 * and arithmetic of GF(256) for Reed-Solomon parts. Called from Python without the interpreter's
 * lock; nothing here keeps state. */
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#if defined __x86_64__
#include <nmmintrin.h>
#define TARGET __attribute__((target("sse4.2")))
#else
#define TARGET
#endif
#define EXPORT __attribute__((visibility("default")))
#define BLOCK 16384 /* stays in the first-level cache between the checksum and the copy */
#define LANE (BLOCK / 4)

static uint32_t table[8][256]; /* of CRC-32C, reflected polynomial 0x82f63b78 (RFC 3720) */
static uint32_t shift_lane[4][256]; /* the effect of LANE bytes of zeros */
static uint8_t gf_exp[512], gf_log[256];

static uint32_t crc_bytes(uint32_t crc, const uint8_t *at, size_t length)
{
	while (length--)
		crc = crc >> 8 ^ table[0][(crc ^ *at++) & 255];
	return crc;
}

static uint32_t crc_zeros(uint32_t crc, size_t length)
{
	while (length--)
		crc = crc >> 8 ^ table[0][crc & 255];
	return crc;
}

static __attribute__((constructor)) void make_tables(void)
{
	unsigned value = 1;

	for (uint32_t i = 0; i < 256; i++) {
		uint32_t crc = i;

		for (int bit = 0; bit < 8; bit++)
			crc = crc >> 1 ^ (crc & 1 ? 0x82f63b78u : 0);
		table[0][i] = crc;
	}
	for (uint32_t i = 0; i < 256; i++)
		for (int k = 1; k < 8; k++)
			table[k][i] = table[k - 1][i] >> 8 ^ table[0][table[k - 1][i] & 255];
	for (int k = 0; k < 4; k++)
		for (uint32_t i = 0; i < 256; i++)
			shift_lane[k][i] = crc_zeros(i << (8 * k), LANE);
	for (int i = 0; i < 255; i++) { /* GF(256) of x^8+x^4+x^3+x^2+1, generator 2 */
		gf_exp[i] = gf_exp[i + 255] = (uint8_t)value;
		gf_log[value] = (uint8_t)i;
		value = value << 1 ^ (value & 128 ? 0x11d : 0);
	}
}

static uint32_t over_lane(uint32_t crc)
{
	return shift_lane[0][crc & 255] ^ shift_lane[1][crc >> 8 & 255] ^
	       shift_lane[2][crc >> 16 & 255] ^ shift_lane[3][crc >> 24];
}

#if defined __x86_64__
/* One block in four lanes: the instruction takes three cycles, but one can begin in each. */
static TARGET uint32_t crc_block(uint32_t crc, const uint8_t *at)
{
	uint64_t lane[4] = {crc, 0, 0, 0}, word[4];

	for (size_t i = 0; i < LANE; i += 8) {
		for (int k = 0; k < 4; k++)
			memcpy(&word[k], at + (size_t)k * LANE + i, 8);
		lane[0] = _mm_crc32_u64(lane[0], word[0]);
		lane[1] = _mm_crc32_u64(lane[1], word[1]);
		lane[2] = _mm_crc32_u64(lane[2], word[2]);
		lane[3] = _mm_crc32_u64(lane[3], word[3]);
	}
	crc = (uint32_t)lane[0];
	for (int k = 1; k < 4; k++)
		crc = over_lane(crc) ^ (uint32_t)lane[k];
	return crc;
}

/* The same with a copy past the caches, as memcpy makes one of this size: lines that are only
 * written need not be read first. `into` lies on 16 bytes. */
static TARGET uint32_t copy_block(uint32_t crc, uint8_t *into, const uint8_t *at)
{
	uint64_t lane[4] = {crc, 0, 0, 0};

	for (size_t i = 0; i < LANE; i += 64)
		for (int k = 0; k < 4; k++)
			for (size_t j = 0; j < 64; j += 16) {
				size_t from = (size_t)k * LANE + i + j;
				__m128i data = _mm_loadu_si128((const __m128i *)(at + from));

				_mm_stream_si128((__m128i *)(into + from), data);
				lane[k] = _mm_crc32_u64(lane[k], (uint64_t)_mm_cvtsi128_si64(data));
				lane[k] = _mm_crc32_u64(lane[k],
							(uint64_t)_mm_extract_epi64(data, 1));
			}
	crc = (uint32_t)lane[0];
	_mm_sfence();
	for (int k = 1; k < 4; k++)
		crc = over_lane(crc) ^ (uint32_t)lane[k];
	return crc;
}

static int has_crc(void)
{
	return __builtin_cpu_supports("sse4.2");
}
#else
static uint32_t crc_block(uint32_t crc, const uint8_t *at)
{
	return crc_bytes(crc, at, BLOCK);
}

static uint32_t copy_block(uint32_t crc, uint8_t *into, const uint8_t *at)
{
	memcpy(into, at, BLOCK);
	return crc_bytes(crc, at, BLOCK);
}

static int has_crc(void)
{
	return 0;
}
#endif

static uint32_t crc_plain(uint32_t crc, const uint8_t *at, size_t length)
{
	while (length >= 8) {
		uint64_t word;

		memcpy(&word, at, 8);
		word ^= crc;
		crc = 0;
		for (int k = 0; k < 8; k++)
			crc ^= table[7 - k][word >> (8 * k) & 255];
		at += 8, length -= 8;
	}
	return crc_bytes(crc, at, length);
}

/* CRC-32C of length bytes, going on from `crc` (0 at first). */
EXPORT uint32_t fabric_crc(uint32_t crc, const void *from, size_t length)
{
	const uint8_t *at = from;
	int fast = has_crc();

	crc = ~crc;
	for (; fast && length >= BLOCK; at += BLOCK, length -= BLOCK)
		crc = crc_block(crc, at);
	return ~crc_plain(crc, at, length);
}

/* memcpy that gives the checksum of what was read: a copy that went wrong does not match it. */
EXPORT uint32_t fabric_copy_crc(void *to, const void *from, size_t length, uint32_t crc)
{
	const uint8_t *at = from;
	uint8_t *into = to;
	int fast = has_crc();

	crc = ~crc;
	if ((uintptr_t)into % 16 == 0)
		for (; fast && length >= BLOCK; at += BLOCK, into += BLOCK, length -= BLOCK)
			crc = copy_block(crc, into, at);
	for (; fast && length >= BLOCK; at += BLOCK, into += BLOCK, length -= BLOCK) {
		crc = crc_block(crc, at);
		memcpy(into, at, BLOCK);
	}
	crc = crc_plain(crc, at, length);
	memcpy(into, at, length);
	return ~crc;
}

#if defined __x86_64__ && defined __GNUC__ && !defined __clang__
#define WIDE __attribute__((target_clones("avx2", "default")))
#else
#define WIDE
#endif

/* to ^= from */
EXPORT WIDE void fabric_xor(void *to, const void *from, size_t length)
{
	uint8_t *restrict into = to;
	const uint8_t *restrict at = from;

	for (size_t i = 0; i < length; i++)
		into[i] ^= at[i];
}

#if defined __x86_64__
#include <immintrin.h>
static __attribute__((target("avx2"))) size_t gf_wide(uint8_t *into, const uint8_t *at,
						      size_t length, const uint8_t low[16],
						      const uint8_t high[16])
{
	__m256i lows = _mm256_broadcastsi128_si256(_mm_loadu_si128((const __m128i *)low));
	__m256i highs = _mm256_broadcastsi128_si256(_mm_loadu_si128((const __m128i *)high));
	__m256i mask = _mm256_set1_epi8(15);
	size_t i;

	for (i = 0; i + 32 <= length; i += 32) {
		__m256i data = _mm256_loadu_si256((const __m256i *)(at + i));
		__m256i a = _mm256_shuffle_epi8(lows, _mm256_and_si256(data, mask));
		__m256i top = _mm256_and_si256(_mm256_srli_epi64(data, 4), mask);
		__m256i sum = _mm256_xor_si256(a, _mm256_shuffle_epi8(highs, top));
		__m256i was = _mm256_loadu_si256((const __m256i *)(into + i));

		_mm256_storeu_si256((__m256i *)(into + i), _mm256_xor_si256(was, sum));
	}
	return i;
}

static __attribute__((target("ssse3"))) size_t gf_fast(uint8_t *into, const uint8_t *at,
						       size_t length, const uint8_t low[16],
						       const uint8_t high[16])
{
	__m128i lows = _mm_loadu_si128((const __m128i *)low);
	__m128i highs = _mm_loadu_si128((const __m128i *)high), mask = _mm_set1_epi8(15);
	size_t i;

	for (i = 0; i + 16 <= length; i += 16) {
		__m128i data = _mm_loadu_si128((const __m128i *)(at + i));
		__m128i a = _mm_shuffle_epi8(lows, _mm_and_si128(data, mask));
		__m128i b = _mm_shuffle_epi8(highs, _mm_and_si128(_mm_srli_epi64(data, 4), mask));
		__m128i was = _mm_loadu_si128((const __m128i *)(into + i));

		_mm_storeu_si128((__m128i *)(into + i), _mm_xor_si128(was, _mm_xor_si128(a, b)));
	}
	return i;
}
#endif

EXPORT uint8_t fabric_gf_mul(uint8_t a, uint8_t b)
{
	return a && b ? gf_exp[gf_log[a] + gf_log[b]] : 0;
}

EXPORT uint8_t fabric_gf_inverse(uint8_t a)
{
	return gf_exp[255 - gf_log[a]];
}

/* to ^= factor * from in GF(256) */
EXPORT void fabric_gf_add(void *to, const void *from, size_t length, uint8_t factor)
{
	uint8_t *into = to, low[16], high[16];
	const uint8_t *at = from;
	size_t i = 0;

	for (uint8_t n = 0; n < 16; n++) {
		low[n] = fabric_gf_mul(n, factor);
		high[n] = fabric_gf_mul((uint8_t)(n << 4), factor);
	}
#if defined __x86_64__
	if (__builtin_cpu_supports("avx2"))
		i = gf_wide(into, at, length, low, high);
	else if (__builtin_cpu_supports("ssse3"))
		i = gf_fast(into, at, length, low, high);
#endif
	for (; i < length; i++)
		into[i] ^= low[at[i] & 15] ^ high[at[i] >> 4];
}
