/* IP addresses of either family, and how a node's fabric addresses follow from its rails'. */
#ifndef FABRIC_ADDRESS_H
#define FABRIC_ADDRESS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define MAX_RAILS 8 /* rails of one node; three bits of a fabric address */
#define IP_TEXT_BYTES 46

struct ip {
	uint8_t family; /* AF_INET, AF_INET6; 0: none */
	uint8_t byte[16]; /* network order */
};

struct net {
	struct ip ip;
	uint8_t bits;
};

bool ip_parse(const char *text, struct ip *ip);
bool net_parse(const char *text, struct net *net); /* ADDRESS/BITS */
const char *ip_text(const struct ip *ip, char text[IP_TEXT_BYTES]);
bool ip_equal(const struct ip *a, const struct ip *b);
int ip_order(const struct ip *a, const struct ip *b); /* for qsort and bsearch */
size_t ip_bytes(const struct ip *ip); /* 4, 16 or 0 */
bool net_contains(const struct net *net, const struct ip *ip);

/* The fabric address that belongs to one rail of a node, from the rail's own address there.
 * IPv4: the pool's prefix, three bits of rail number, then the low bits of the rail's address.
 * IPv6: the pool's first 48 bits, 16 bits of rail number, the rail's interface identifier.
 * It depends on nothing else, so that all jobs of a node share it and nobody can claim the
 * address of a rail that he does not answer on. */
struct ip fabric_address(const struct net *pool, unsigned rail, const struct ip *rail_ip);

/* The part of the pool that holds every node's address for one rail. */
struct net fabric_rail_net(const struct net *pool, unsigned rail);

#endif
