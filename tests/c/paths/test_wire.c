/* The tag's published vectors, the two messages there and back, fabric addresses. */
#include "address.h"
#include "check.h"
#include "siphash.h"
#include "wire.h"

#include <endian.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>

static const uint8_t KEY[SIPHASH_KEY_BYTES] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};

/* Key and input are the bytes 0, 1, 2...; the tags are those of the SipHash paper (appendix A: 15
 * bytes) and of its authors' table of vectors for the 64-bit tag. */
static void published_vectors_of_siphash(void)
{
	static const struct {
		size_t size;
		uint64_t tag;
	} CASES[] = {
		{0, 0x726fdb47dd0e0e31ULL},  {1, 0x74f839c593dc67fdULL},  {2, 0x0d6c8009d9a94f5aULL},
		{7, 0xab0200f58b01d137ULL},  {8, 0x93f5f5799a932462ULL},  {9, 0x9e0082df0ba9e4b0ULL},
		{15, 0xa129ca6149be45e5ULL}, {16, 0x3f2acc7f57c29bdbULL}, {63, 0x958a324ceb064572ULL},
	};
	uint8_t input[64];

	for (size_t i = 0; i < sizeof(input); i++)
		input[i] = (uint8_t)i;
	for (size_t i = 0; i < sizeof(CASES) / sizeof(CASES[0]); i++)
		CHECK(siphash24(KEY, input, CASES[i].size) == CASES[i].tag);
}

static struct wire a_probe(void)
{
	struct wire wire = {
		.type = WIRE_PROBE, .rail = 1, .flags = WIRE_QUERY, .rails = 2, .from = 7, .to = 9,
		.session = 11, .to_session = 12, .sequence = 13, .sent_ns = 14,
	};

	wire.probe.echo_sent_ns = 15;
	wire.probe.echo_hold_ns = 16;
	wire.probe.next_us = 17;
	wire.probe.view[0] = (struct wire_view){2, 1, 100, 1, 2500, 2000};
	wire.probe.view[1] = (struct wire_view){1, 4, 255, 0, 0, 0};
	return wire;
}

static void a_probe_arrives_as_it_was_sent(void)
{
	struct wire sent = a_probe(), got;
	uint8_t data[WIRE_MAX];
	size_t size = wire_encode(&sent, KEY, data);

	CHECK(wire_decode(&got, KEY, data, size));
	CHECK(got.from == 7 && got.to == 9 && got.session == 11 && got.to_session == 12);
	CHECK(got.sequence == 13 && got.sent_ns == 14 && got.probe.echo_sent_ns == 15);
	CHECK(got.probe.echo_hold_ns == 16 && got.probe.next_us == 17 && got.flags == WIRE_QUERY);
	CHECK(!memcmp(got.probe.view, sent.probe.view, 2 * sizeof(struct wire_view)));
}

static void a_hello_arrives_as_it_was_sent(void)
{
	struct wire sent = {.type = WIRE_HELLO, .rail = WIRE_HELLO_RAIL, .rails = 2}, got;
	uint8_t data[WIRE_MAX];
	size_t size;

	sent.hello.phase = PHASE_HAVE;
	sent.hello.port = 20501;
	sent.hello.origin = 4;
	CHECK(net_parse("10.78.0.11/16", &sent.hello.rail[0].net4));
	CHECK(ip_parse("fe80::1", &sent.hello.rail[1].ip6));
	size = wire_encode(&sent, KEY, data);
	CHECK(wire_decode(&got, KEY, data, size));
	CHECK(got.hello.phase == PHASE_HAVE && got.hello.port == 20501 && got.hello.origin == 4);
	CHECK(ip_equal(&got.hello.rail[0].net4.ip, &sent.hello.rail[0].net4.ip));
	CHECK(got.hello.rail[0].net4.bits == 16 && !got.hello.rail[0].ip6.family);
	CHECK(ip_equal(&got.hello.rail[1].ip6, &sent.hello.rail[1].ip6));
}

static void any_bit_flipped_is_refused(void)
{
	struct wire sent = a_probe(), got;
	uint8_t data[WIRE_MAX], other[SIPHASH_KEY_BYTES];
	size_t size = wire_encode(&sent, KEY, data);

	for (size_t bit = 0; bit < 8 * size; bit++) {
		data[bit / 8] ^= (uint8_t)(1 << bit % 8);
		CHECK(!wire_decode(&got, KEY, data, size));
		data[bit / 8] ^= (uint8_t)(1 << bit % 8);
	}
	for (size_t less = 0; less < size; less++)
		CHECK(!wire_decode(&got, KEY, data, less));
	memcpy(other, KEY, sizeof(other));
	other[15] ^= 1;
	CHECK(!wire_decode(&got, other, data, size));
}

static void padding_behind_the_tag_is_of_no_matter(void)
{
	struct wire sent = a_probe(), got;
	uint8_t data[1500] = {0};

	wire_encode(&sent, KEY, data);
	CHECK(wire_decode(&got, KEY, data, sizeof(data)));
}

static void fabric_addresses_follow_from_the_rails(void)
{
	struct net pool4, pool6, part;
	struct ip rail, made, wanted;

	CHECK(net_parse("100.64.0.0/10", &pool4) && net_parse("fd66:6162::/48", &pool6));
	CHECK(ip_parse("10.78.0.11", &rail) && ip_parse("100.70.0.11", &wanted));
	made = fabric_address(&pool4, 0, &rail);
	CHECK(ip_equal(&made, &wanted));
	CHECK(ip_parse("100.78.0.11", &wanted));
	made = fabric_address(&pool4, 1, &rail);
	CHECK(ip_equal(&made, &wanted));
	part = fabric_rail_net(&pool4, 1);
	CHECK(part.bits == 13 && net_contains(&part, &made));
	part = fabric_rail_net(&pool4, 0);
	CHECK(!net_contains(&part, &made));
	CHECK(ip_parse("fe80::1234", &rail) && ip_parse("fd66:6162:0:3::1234", &wanted));
	made = fabric_address(&pool6, 3, &rail);
	CHECK(ip_equal(&made, &wanted));
	made = fabric_address(&pool4, 3, &rail); /* no IPv4 there: none made up */
	CHECK(!made.family);
}

static void what_is_no_network_is_refused(void)
{
	static const char *const WRONG[] = {"10.0.0.0", "10.0.0.0/33", "10.0.0/8", "/8", "::1/129",
					    "10.0.0.0/", "10.0.0.0/8x", ""};
	struct net net;

	for (size_t i = 0; i < sizeof(WRONG) / sizeof(WRONG[0]); i++)
		CHECK(!net_parse(WRONG[i], &net));
}

/* What a node that has the key may send: any bytes at all, sealed. Sizes are exact, so that the
 * sanitizers see a byte read too far. */
static void sealed_nonsense_is_read_within_its_bounds(void)
{
	struct wire wire = a_probe();
	uint64_t random = 88172645463325252ULL;
	uint8_t good[WIRE_MAX];
	size_t size = wire_encode(&wire, KEY, good);

	for (int round = 0; round < 20000; round++) {
		size_t length, changes;
		uint8_t *data;
		uint64_t tag;

		random ^= random << 13, random ^= random >> 7, random ^= random << 17;
		length = 8 + random % (size + 40);
		data = malloc(length);
		if (!data)
			abort();
		memset(data, (int)(random >> 8), length);
		memcpy(data, good, size < length ? size : length);
		for (changes = random % 5; changes; changes--) {
			random ^= random << 13, random ^= random >> 7, random ^= random << 17;
			data[(random >> 8) % length] = (uint8_t)random;
		}
		tag = htole64(siphash24(KEY, data, length - 8));
		memcpy(data + length - 8, &tag, 8);
		if (wire_decode(&wire, KEY, data, length)) {
			CHECK(wire.rails <= MAX_RAILS);
			CHECK(wire.type == WIRE_PROBE || wire.type == WIRE_HELLO);
		}
		free(data);
	}
}

int main(void)
{
	published_vectors_of_siphash();
	a_probe_arrives_as_it_was_sent();
	a_hello_arrives_as_it_was_sent();
	any_bit_flipped_is_refused();
	padding_behind_the_tag_is_of_no_matter();
	fabric_addresses_follow_from_the_rails();
	what_is_no_network_is_refused();
	sealed_nonsense_is_read_within_its_bounds();
	return check_failures != 0;
}
