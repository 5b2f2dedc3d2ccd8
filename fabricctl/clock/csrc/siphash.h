/* SipHash-2-4 with a 64-bit tag (Aumasson, Bernstein: "SipHash: a fast short-input PRF", 2012).
 * Every probe carries one under a key derived from the job's key. */
#ifndef FABRIC_CLOCK_SIPHASH_H
#define FABRIC_CLOCK_SIPHASH_H

#include <stddef.h>
#include <stdint.h>

uint64_t clock_siphash(const uint8_t key[16], const uint8_t *data, size_t size);

#endif
