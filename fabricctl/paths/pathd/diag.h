/* The kernel's TCP sockets, read through sock_diag: whom the job talks to, and whether its streams
 * move again after a rail was left. */
#ifndef FABRIC_DIAG_H
#define FABRIC_DIAG_H

#include "address.h"
#include "rtnl.h"

struct diag_socket {
	struct ip source, to;
	uint16_t source_port, to_port;
	uint32_t waiting_bytes; /* sent or to be sent, not acknowledged */
	uint64_t acked_bytes, received_bytes;
	uint64_t received_room; /* what the segments with data that came could have held */
	uint32_t last_ack_ms; /* since the newest acknowledgement */
	uint32_t retransmitted; /* segments, over the socket's life */
};

typedef void diag_each(const struct diag_socket *socket, void *arg);

/* Every established or connecting TCP socket of the family whose source lies in one of the `count` nets;
 * of IPv6 also those that are connected over IPv4, told as such. 0 or -errno. The kernel walks its whole
 * table, 0.2 ms of CPU and more: ask rarely. */
#define DIAG_NETS (2 * (MAX_RAILS + 1))
int diag_dump(struct rtnl *diag, uint8_t family, const struct net *nets, size_t count, diag_each *each,
	      void *arg);

#endif
