#include "wire.h"

#include <arpa/inet.h>
#include <endian.h>
#include <string.h>

#define MAGIC "FpP3"
#define HEAD_BYTES 48
#define PROBE_BYTES 16
#define VIEW_BYTES 8
#define HELLO_BYTES 8
#define RAIL_BYTES 24
#define TAG_BYTES 8

static void put16(uint8_t *at, uint16_t value)
{
	value = htole16(value);
	memcpy(at, &value, sizeof(value));
}

static void put32(uint8_t *at, uint32_t value)
{
	value = htole32(value);
	memcpy(at, &value, sizeof(value));
}

static void put64(uint8_t *at, uint64_t value)
{
	value = htole64(value);
	memcpy(at, &value, sizeof(value));
}

static uint16_t get16(const uint8_t *at)
{
	uint16_t value;

	memcpy(&value, at, sizeof(value));
	return le16toh(value);
}

static uint32_t get32(const uint8_t *at)
{
	uint32_t value;

	memcpy(&value, at, sizeof(value));
	return le32toh(value);
}

static uint64_t get64(const uint8_t *at)
{
	uint64_t value;

	memcpy(&value, at, sizeof(value));
	return le64toh(value);
}

static size_t body_bytes(uint8_t type, uint8_t rails)
{
	if (type == WIRE_PROBE)
		return PROBE_BYTES + (size_t)rails * VIEW_BYTES;
	return HELLO_BYTES + (size_t)rails * RAIL_BYTES;
}

static void put_probe(const struct wire *wire, uint8_t *at)
{
	put64(at, wire->probe.echo_sent_ns);
	put32(at + 8, wire->probe.echo_hold_ns);
	put32(at + 12, wire->probe.next_us);
	for (unsigned i = 0; i < wire->rails; i++) {
		uint8_t *view = at + PROBE_BYTES + (size_t)i * VIEW_BYTES;

		view[0] = wire->probe.view[i].level;
		view[1] = wire->probe.view[i].reason;
		view[2] = wire->probe.view[i].hears;
		view[3] = wire->probe.view[i].pinned;
		put16(view + 4, wire->probe.view[i].queue);
		put16(view + 6, wire->probe.view[i].back);
	}
}

static void get_probe(struct wire *wire, const uint8_t *at)
{
	wire->probe.echo_sent_ns = get64(at);
	wire->probe.echo_hold_ns = get32(at + 8);
	wire->probe.next_us = get32(at + 12);
	for (unsigned i = 0; i < wire->rails; i++) {
		const uint8_t *view = at + PROBE_BYTES + (size_t)i * VIEW_BYTES;

		wire->probe.view[i] = (struct wire_view){view[0], view[1], view[2], view[3],
								get16(view + 4), get16(view + 6)};
	}
}

static void put_hello(const struct wire *wire, uint8_t *at)
{
	memset(at, 0, body_bytes(WIRE_HELLO, wire->rails));
	at[0] = wire->hello.phase;
	put16(at + 2, wire->hello.port);
	put32(at + 4, wire->hello.origin);
	for (unsigned i = 0; i < wire->rails; i++) {
		const struct wire_rail *rail = &wire->hello.rail[i];
		uint8_t *to = at + HELLO_BYTES + (size_t)i * RAIL_BYTES;

		if (rail->net4.ip.family)
			memcpy(to, rail->net4.ip.byte, 4);
		to[4] = rail->net4.bits;
		if (rail->ip6.family)
			memcpy(to + 8, rail->ip6.byte, 16);
	}
}

static void get_hello(struct wire *wire, const uint8_t *at)
{
	static const uint8_t NONE[16];

	wire->hello.phase = at[0];
	wire->hello.port = get16(at + 2);
	wire->hello.origin = get32(at + 4);
	for (unsigned i = 0; i < wire->rails; i++) {
		struct wire_rail *rail = &wire->hello.rail[i];
		const uint8_t *from = at + HELLO_BYTES + (size_t)i * RAIL_BYTES;

		if (memcmp(from, NONE, 4) != 0) {
			rail->net4.ip.family = AF_INET;
			memcpy(rail->net4.ip.byte, from, 4);
			rail->net4.bits = from[4];
		}
		if (memcmp(from + 8, NONE, 16) != 0) {
			rail->ip6.family = AF_INET6;
			memcpy(rail->ip6.byte, from + 8, 16);
		}
	}
}

size_t wire_encode(const struct wire *wire, const uint8_t key[SIPHASH_KEY_BYTES], uint8_t *data)
{
	size_t size = HEAD_BYTES + body_bytes(wire->type, wire->rails);

	memcpy(data, MAGIC, 4);
	data[4] = wire->type;
	data[5] = wire->rail;
	data[WIRE_FLAGS_AT] = wire->flags;
	data[7] = wire->rails;
	put32(data + 8, wire->from);
	put32(data + 12, wire->to);
	put64(data + 16, wire->session);
	put64(data + 24, wire->to_session);
	put64(data + 32, wire->sequence);
	put64(data + 40, wire->sent_ns);
	if (wire->type == WIRE_PROBE)
		put_probe(wire, data + HEAD_BYTES);
	else
		put_hello(wire, data + HEAD_BYTES);
	put64(data + size, siphash24(key, data, size));
	return size + TAG_BYTES;
}

bool wire_decode(struct wire *wire, const uint8_t key[SIPHASH_KEY_BYTES], const uint8_t *data,
		 size_t size)
{
	size_t whole;

	if (size < HEAD_BYTES + TAG_BYTES || memcmp(data, MAGIC, 4) != 0 ||
	    (data[4] != WIRE_PROBE && data[4] != WIRE_HELLO) || data[7] == 0 ||
	    data[7] > MAX_RAILS)
		return false;
	whole = HEAD_BYTES + body_bytes(data[4], data[7]);
	if (size < whole + TAG_BYTES || get64(data + whole) != siphash24(key, data, whole))
		return false;
	memset(wire, 0, sizeof(*wire));
	wire->type = data[4];
	wire->rail = data[5];
	wire->flags = data[WIRE_FLAGS_AT];
	wire->rails = data[7];
	wire->from = get32(data + 8);
	wire->to = get32(data + 12);
	wire->session = get64(data + 16);
	wire->to_session = get64(data + 24);
	wire->sequence = get64(data + 32);
	wire->sent_ns = get64(data + 40);
	if (wire->type == WIRE_PROBE)
		get_probe(wire, data + HEAD_BYTES);
	else
		get_hello(wire, data + HEAD_BYTES);
	return true;
}
