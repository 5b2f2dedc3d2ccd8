#include "address.h"

#include <arpa/inet.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define RAIL_BITS 3
#define POOL6_BITS 48

bool ip_parse(const char *text, struct ip *ip)
{
	memset(ip, 0, sizeof(*ip));
	if (inet_pton(AF_INET, text, ip->byte) == 1)
		ip->family = AF_INET;
	else if (inet_pton(AF_INET6, text, ip->byte) == 1)
		ip->family = AF_INET6;
	return ip->family != 0;
}

bool net_parse(const char *text, struct net *net)
{
	char address[IP_TEXT_BYTES];
	const char *slash = strchr(text, '/');
	char *end;
	unsigned long bits;

	if (!slash || (size_t)(slash - text) >= sizeof(address))
		return false;
	memcpy(address, text, (size_t)(slash - text));
	address[slash - text] = '\0';
	bits = strtoul(slash + 1, &end, 10);
	if (!slash[1] || *end || !ip_parse(address, &net->ip) || bits > 8 * ip_bytes(&net->ip))
		return false;
	net->bits = (uint8_t)bits;
	return true;
}

const char *ip_text(const struct ip *ip, char text[IP_TEXT_BYTES])
{
	if (!ip->family || !inet_ntop(ip->family, ip->byte, text, IP_TEXT_BYTES))
		strcpy(text, "-");
	return text;
}

size_t ip_bytes(const struct ip *ip)
{
	return ip->family == AF_INET ? 4 : ip->family == AF_INET6 ? 16 : 0;
}

bool ip_equal(const struct ip *a, const struct ip *b)
{
	return ip_order(a, b) == 0;
}

int ip_order(const struct ip *a, const struct ip *b)
{
	if (a->family != b->family)
		return (int)a->family - (int)b->family;
	return memcmp(a->byte, b->byte, ip_bytes(a));
}

bool net_contains(const struct net *net, const struct ip *ip)
{
	unsigned whole = net->bits / 8, rest = net->bits % 8;

	if (net->ip.family != ip->family || memcmp(net->ip.byte, ip->byte, whole) != 0)
		return false;
	return !rest || (net->ip.byte[whole] ^ ip->byte[whole]) >> (8 - rest) == 0;
}

struct net fabric_rail_net(const struct net *pool, unsigned rail)
{
	struct net part = *pool;

	if (pool->ip.family == AF_INET6) {
		part.ip.byte[7] = (uint8_t)rail;
		part.bits = POOL6_BITS + 16;
	} else {
		uint32_t word;

		memcpy(&word, pool->ip.byte, 4);
		word = htonl(ntohl(word) | rail << (32 - pool->bits - RAIL_BITS));
		memcpy(part.ip.byte, &word, 4);
		part.bits = (uint8_t)(pool->bits + RAIL_BITS);
	}
	return part;
}

struct ip fabric_address(const struct net *pool, unsigned rail, const struct ip *rail_ip)
{
	struct net part = fabric_rail_net(pool, rail);
	struct ip result = {0};

	if (!pool->ip.family || rail_ip->family != pool->ip.family)
		return result;
	result = part.ip;
	if (rail_ip->family == AF_INET6) {
		memcpy(result.byte + 8, rail_ip->byte + 8, 8);
	} else {
		uint32_t base, low;

		memcpy(&base, part.ip.byte, 4);
		memcpy(&low, rail_ip->byte, 4);
		base = ntohl(base) | (ntohl(low) & (0xffffffffu >> part.bits));
		base = htonl(base);
		memcpy(result.byte, &base, 4);
	}
	return result;
}
