/* SipHash-2-4 with a 64-bit tag (Aumasson, Bernstein: "SipHash: a fast short-input PRF", 2012).
 * Every message between two fabric-pathd carries one, keyed from the job's key. */
#ifndef FABRIC_SIPHASH_H
#define FABRIC_SIPHASH_H

#include <stddef.h>
#include <stdint.h>

#define SIPHASH_KEY_BYTES 16

uint64_t siphash24(const uint8_t key[SIPHASH_KEY_BYTES], const void *data, size_t size);

#endif
