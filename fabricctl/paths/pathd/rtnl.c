#include "rtnl.h"

#include <errno.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <unistd.h>

#define ANSWER_S 5 /* the kernel answers at once; this only bounds a fault of our own */
#define RECEIVE_BYTES 65536

static struct nlmsghdr *header(struct rtnl_msg *msg)
{
	return (struct nlmsghdr *)msg->data;
}

int rtnl_open(struct rtnl *rtnl, int protocol, uint32_t groups)
{
	struct sockaddr_nl self = {.nl_family = AF_NETLINK, .nl_groups = groups};
	struct timeval wait = {.tv_sec = ANSWER_S};
	int size = 1 << 20;
	int error;

	rtnl->sequence = 1;
	rtnl->fd = socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, protocol);
	if (rtnl->fd < 0)
		return -errno;
	if (bind(rtnl->fd, (struct sockaddr *)&self, sizeof(self)) != 0 ||
	    setsockopt(rtnl->fd, SOL_SOCKET, SO_RCVTIMEO, &wait, sizeof(wait)) != 0) {
		error = -errno;
		rtnl_close(rtnl);
		return error;
	}
	/* Room for the link events of a whole switch; refused without CAP_NET_ADMIN, then default. */
	setsockopt(rtnl->fd, SOL_SOCKET, SO_RCVBUFFORCE, &size, sizeof(size));
	return 0;
}

void rtnl_close(struct rtnl *rtnl)
{
	if (rtnl->fd >= 0)
		close(rtnl->fd);
	rtnl->fd = -1;
}

void rtnl_begin(struct rtnl_msg *msg, uint16_t type, uint16_t flags, const void *head, size_t size)
{
	struct nlmsghdr *nlh = header(msg);

	memset(nlh, 0, sizeof(*nlh));
	msg->full = false;
	nlh->nlmsg_type = type;
	nlh->nlmsg_flags = NLM_F_REQUEST | flags;
	nlh->nlmsg_len = (uint32_t)NLMSG_LENGTH(size);
	memcpy(NLMSG_DATA(nlh), head, size);
}

void rtnl_put(struct rtnl_msg *msg, uint16_t type, const void *value, size_t size)
{
	struct nlmsghdr *nlh = header(msg);
	size_t at = NLMSG_ALIGN(nlh->nlmsg_len);
	struct rtattr *attr = (struct rtattr *)(msg->data + at);

	if (at + RTA_SPACE(size) > sizeof(msg->data)) {
		msg->full = true;
		return;
	}
	attr->rta_type = type;
	attr->rta_len = (uint16_t)RTA_LENGTH(size);
	if (size)
		memcpy(RTA_DATA(attr), value, size);
	nlh->nlmsg_len = (uint32_t)(at + RTA_SPACE(size));
}

void rtnl_put_u32(struct rtnl_msg *msg, uint16_t type, uint32_t value)
{
	rtnl_put(msg, type, &value, sizeof(value));
}

void rtnl_put_text(struct rtnl_msg *msg, uint16_t type, const char *text)
{
	rtnl_put(msg, type, text, strlen(text) + 1);
}

size_t rtnl_nest(struct rtnl_msg *msg, uint16_t type)
{
	size_t at = NLMSG_ALIGN(header(msg)->nlmsg_len);

	rtnl_put(msg, type | NLA_F_NESTED, NULL, 0);
	return at;
}

void rtnl_nest_end(struct rtnl_msg *msg, size_t nest)
{
	struct rtattr *attr = (struct rtattr *)(msg->data + nest);

	if (!msg->full)
		attr->rta_len = (uint16_t)(header(msg)->nlmsg_len - nest);
}

static int transmit(struct rtnl *rtnl, struct rtnl_msg *msg)
{
	struct nlmsghdr *nlh = header(msg);
	ssize_t sent;

	if (msg->full)
		return -EMSGSIZE;
	nlh->nlmsg_seq = ++rtnl->sequence;
	do
		sent = send(rtnl->fd, nlh, nlh->nlmsg_len, 0);
	while (sent < 0 && errno == EINTR);
	return sent < 0 ? -errno : 0;
}

/* Reads datagrams until the answer to the last request ends. */
static int await(struct rtnl *rtnl, rtnl_each *each, void *arg)
{
	static _Alignas(struct nlmsghdr) char buffer[RECEIVE_BYTES];
	bool interrupted = false;

	for (;;) {
		ssize_t got = recv(rtnl->fd, buffer, sizeof(buffer), 0);
		const struct nlmsghdr *nlh = (const struct nlmsghdr *)buffer;

		if (got < 0 && errno == EINTR)
			continue;
		if (got < 0)
			return errno == EAGAIN ? -ETIMEDOUT : -errno;
		for (int left = (int)got; NLMSG_OK(nlh, (unsigned)left); nlh = NLMSG_NEXT(nlh, left)) {
			if (nlh->nlmsg_seq != rtnl->sequence)
				continue; /* left over from a request that timed out */
			interrupted |= nlh->nlmsg_flags & NLM_F_DUMP_INTR;
			if (nlh->nlmsg_type == NLMSG_ERROR)
				return ((const struct nlmsgerr *)NLMSG_DATA(nlh))->error;
			if (nlh->nlmsg_type == NLMSG_DONE)
				return interrupted ? -EINTR : 0;
			if (each)
				each(nlh, arg);
		}
	}
}

int rtnl_ask(struct rtnl *rtnl, struct rtnl_msg *msg, rtnl_each *each, void *arg)
{
	int error;

	header(msg)->nlmsg_flags |= NLM_F_ACK;
	error = transmit(rtnl, msg);
	return error ? error : await(rtnl, each, arg);
}

int rtnl_call(struct rtnl *rtnl, struct rtnl_msg *msg)
{
	return rtnl_ask(rtnl, msg, NULL, NULL);
}

int rtnl_dump(struct rtnl *rtnl, struct rtnl_msg *msg, rtnl_each *each, void *arg)
{
	int error;

	header(msg)->nlmsg_flags |= NLM_F_DUMP;
	error = transmit(rtnl, msg);
	return error ? error : await(rtnl, each, arg);
}

void rtnl_parse(const struct nlmsghdr *head, size_t skip, const struct rtattr *table[], size_t count)
{
	int left = (int)(head->nlmsg_len - NLMSG_LENGTH(skip));
	const struct rtattr *attr =
		(const struct rtattr *)((const char *)NLMSG_DATA(head) + NLMSG_ALIGN(skip));

	memset(table, 0, count * sizeof(*table));
	for (; RTA_OK(attr, left); attr = RTA_NEXT(attr, left))
		if ((attr->rta_type & NLA_TYPE_MASK) < count)
			table[attr->rta_type & NLA_TYPE_MASK] = attr;
}

uint32_t rtnl_u32(const struct rtattr *attr)
{
	uint32_t value = 0;

	if (attr && RTA_PAYLOAD(attr) >= sizeof(value))
		memcpy(&value, RTA_DATA(attr), sizeof(value));
	return value;
}
