/* Messages to the kernel's routing netlink: build, send, wait for the answer. */
#ifndef FABRIC_RTNL_H
#define FABRIC_RTNL_H

#include <linux/netlink.h>
#include <linux/rtnetlink.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct rtnl {
	int fd;
	uint32_t sequence;
};

struct rtnl_msg {
	_Alignas(struct nlmsghdr) char data[1024];
	bool full; /* an attribute did not fit: rtnl_call refuses it */
};

/* Protocol is NETLINK_ROUTE or NETLINK_SOCK_DIAG. Returns 0 or -errno, like all below. */
int rtnl_open(struct rtnl *rtnl, int protocol, uint32_t groups);
void rtnl_close(struct rtnl *rtnl);

void rtnl_begin(struct rtnl_msg *msg, uint16_t type, uint16_t flags, const void *head, size_t size);
void rtnl_put(struct rtnl_msg *msg, uint16_t type, const void *value, size_t size);
void rtnl_put_u32(struct rtnl_msg *msg, uint16_t type, uint32_t value);
void rtnl_put_text(struct rtnl_msg *msg, uint16_t type, const char *text);
size_t rtnl_nest(struct rtnl_msg *msg, uint16_t type);
void rtnl_nest_end(struct rtnl_msg *msg, size_t nest);

/* Sends one request and waits for the kernel's verdict on it. */
int rtnl_call(struct rtnl *rtnl, struct rtnl_msg *msg);

typedef void rtnl_each(const struct nlmsghdr *head, void *arg);

/* The same of a request with an answer: it is given to `each` before the verdict comes. */
int rtnl_ask(struct rtnl *rtnl, struct rtnl_msg *msg, rtnl_each *each, void *arg);

/* Calls `each` for every message of a dump. -EINTR when the kernel says that it was
 * inconsistent: ask again. */
int rtnl_dump(struct rtnl *rtnl, struct rtnl_msg *msg, rtnl_each *each, void *arg);

/* Attributes of a received message; NULL where absent. `count` is the size of the table. */
void rtnl_parse(const struct nlmsghdr *head, size_t skip, const struct rtattr *table[], size_t count);
uint32_t rtnl_u32(const struct rtattr *attr); /* 0 for NULL */

#endif
