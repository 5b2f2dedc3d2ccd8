/* Leaving a congested rail while another has room: pure computation, one of it a peer.
 *
 * A rail is left when packets for the peer have waited there, and on none of the rails that would
 * take over, for a while; and when it is not ourselves who fill it (then the queue would only move
 * along). It is used again when nothing waits there any more and some seconds have passed. A move
 * that brought the queue to the new rail is taken back, and the next one waits longer. */
#ifndef FABRIC_REROUTE_H
#define FABRIC_REROUTE_H

#include "address.h"

#include <stdbool.h>
#include <stdint.h>

struct reroute {
	uint8_t away; /* rails that we keep off for now */
	uint64_t busy_ns[MAX_RAILS]; /* since when packets wait there; 0: they do not */
	uint64_t calm_ns[MAX_RAILS];
	uint64_t left_ns[MAX_RAILS]; /* when we left it */
	uint64_t not_before_ns, hold_ns; /* the next move; the least time away */
};

struct reroute_view {
	unsigned rails;
	uint8_t good; /* bit a rail: in order, so that traffic may be there */
	uint64_t queue_ns[MAX_RAILS]; /* as the peer measures it */
	uint16_t own[MAX_RAILS]; /* permille of the rail that we send; SHARE_WHOLE: not known */
	uint64_t congested_ns; /* a queue of this length is worth a move */
};

/* True when `away` changed. */
bool reroute_turn(struct reroute *reroute, const struct reroute_view *view, uint64_t now_ns);

#endif
