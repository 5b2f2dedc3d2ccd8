#include "diag.h"

#include <arpa/inet.h>
#include <linux/inet_diag.h>
#include <linux/sock_diag.h>
#include <linux/tcp.h>
#include <netinet/in.h>
#include <string.h>

enum { STATE_ESTABLISHED = 1, STATE_SYN_SENT = 2 }; /* include/net/tcp_states.h */

struct call {
	diag_each *each;
	void *arg;
};

/* "Source within one of the networks": for each a condition that goes on to a jump to the end
 * when it holds, and to the next one when not (inet_diag.h; ss(8) compiles `or` like this). */
static void put_filter(struct rtnl_msg *msg, const struct net *nets, size_t count)
{
	uint8_t code[DIAG_NETS * (sizeof(struct inet_diag_bc_op) * 2 +
				  sizeof(struct inet_diag_hostcond) + 16)];
	size_t jump = sizeof(struct inet_diag_bc_op), at = 0, whole = 0;

	for (size_t i = 0; i < count; i++)
		whole += (i ? 2 : 1) * jump + sizeof(struct inet_diag_hostcond) + ip_bytes(&nets[i].ip);
	for (size_t i = 0; i < count; i++) {
		size_t each = jump + sizeof(struct inet_diag_hostcond) + ip_bytes(&nets[i].ip);
		struct inet_diag_bc_op op = {.code = INET_DIAG_BC_S_COND,
					     .yes = (uint8_t)each,
					     .no = (uint16_t)(each + jump)}; /* the last: reject */
		struct inet_diag_hostcond host = {
			.family = nets[i].ip.family, .prefix_len = nets[i].bits, .port = -1};

		memcpy(code + at, &op, sizeof(op));
		memcpy(code + at + sizeof(op), &host, sizeof(host));
		memcpy(code + at + sizeof(op) + sizeof(host), nets[i].ip.byte, ip_bytes(&nets[i].ip));
		at += each;
		if (at == whole)
			break;
		op = (struct inet_diag_bc_op){.code = INET_DIAG_BC_JMP,
					      .yes = (uint8_t)jump,
					      .no = (uint16_t)(whole - at)};
		memcpy(code + at, &op, sizeof(op));
		at += jump;
	}
	rtnl_put(msg, INET_DIAG_REQ_BYTECODE, code, whole);
}

/* What an IPv6 socket sends over IPv4 (gRPC, Java, Go): of the address that is on the wire. */
static void unmap(struct ip *ip)
{
	static const uint8_t MAPPED[12] = {[10] = 0xff, [11] = 0xff};

	if (ip->family != AF_INET6 || memcmp(ip->byte, MAPPED, sizeof(MAPPED)) != 0)
		return;
	*ip = (struct ip){AF_INET, {ip->byte[12], ip->byte[13], ip->byte[14], ip->byte[15]}};
}

static void see_socket(const struct nlmsghdr *head, void *arg)
{
	const struct inet_diag_msg *msg = NLMSG_DATA(head);
	const struct rtattr *table[INET_DIAG_MAX + 1];
	const struct call *call = arg;
	struct diag_socket found = {0};
	struct tcp_info info = {0};

	if (head->nlmsg_len < NLMSG_LENGTH(sizeof(*msg)))
		return;
	rtnl_parse(head, sizeof(*msg), table, INET_DIAG_MAX + 1);
	found.source.family = found.to.family = msg->idiag_family;
	memcpy(found.source.byte, msg->id.idiag_src, ip_bytes(&found.source));
	memcpy(found.to.byte, msg->id.idiag_dst, ip_bytes(&found.to));
	unmap(&found.source);
	unmap(&found.to);
	found.source_port = ntohs(msg->id.idiag_sport);
	found.to_port = ntohs(msg->id.idiag_dport);
	found.waiting_bytes = msg->idiag_wqueue;
	if (table[INET_DIAG_INFO]) {
		size_t size = RTA_PAYLOAD(table[INET_DIAG_INFO]);

		memcpy(&info, RTA_DATA(table[INET_DIAG_INFO]), size < sizeof(info) ? size : sizeof(info));
		found.acked_bytes = info.tcpi_bytes_acked;
		found.received_bytes = info.tcpi_bytes_received;
		found.received_room = (uint64_t)info.tcpi_data_segs_in * info.tcpi_advmss;
		found.last_ack_ms = info.tcpi_last_ack_recv;
		found.retransmitted = info.tcpi_total_retrans;
	}
	call->each(&found, call->arg);
}

int diag_dump(struct rtnl *diag, uint8_t family, const struct net *nets, size_t count, diag_each *each,
	      void *arg)
{
	struct inet_diag_req_v2 request = {
		.sdiag_family = family,
		.sdiag_protocol = IPPROTO_TCP,
		.idiag_ext = 1u << (INET_DIAG_INFO - 1),
		.idiag_states = 1u << STATE_ESTABLISHED | 1u << STATE_SYN_SENT,
	};
	struct call call = {each, arg};
	struct rtnl_msg msg;

	rtnl_begin(&msg, SOCK_DIAG_BY_FAMILY, 0, &request, sizeof(request));
	put_filter(&msg, nets, count);
	return rtnl_dump(diag, &msg, see_socket, &call);
}
