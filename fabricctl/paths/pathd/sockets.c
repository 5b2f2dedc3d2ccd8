/* One UDP socket a rail, bound to its device, and one on the management network. */
#include "daemon.h"
#include "stamp.h"

#include <arpa/inet.h>
#include <errno.h>
#include <linux/filter.h>
#include <net/if.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

#define CLASS_CS6 0xc0 /* network control, RFC 4594; switches and fq_codel put it first */
#define PRIORITY 6 /* TC_PRIO_INTERACTIVE: the first band of pfifo_fast */
#define LOOKS 3
#define LOOK_NS (MS / 50)
#define RECEIVE_BYTES (4 << 20) /* a tick's arrivals from 8,000 peers */

static bool set(int fd, int level, int name, int value)
{
	return setsockopt(fd, level, name, &value, sizeof(value)) == 0;
}

struct target sockets_target(const struct ip *ip, uint16_t port, unsigned ifindex)
{
	struct target target = {0};

	if (ip->family == AF_INET) {
		struct sockaddr_in *to = (struct sockaddr_in *)&target.address;

		to->sin_family = AF_INET;
		to->sin_port = htons(port);
		memcpy(&to->sin_addr, ip->byte, 4);
		target.size = sizeof(*to);
	} else if (ip->family == AF_INET6) {
		struct sockaddr_in6 *to = (struct sockaddr_in6 *)&target.address;

		to->sin6_family = AF_INET6;
		to->sin6_port = htons(port);
		to->sin6_scope_id = IN6_IS_ADDR_LINKLOCAL((const struct in6_addr *)ip->byte) ? ifindex : 0;
		memcpy(&to->sin6_addr, ip->byte, 16);
		target.size = sizeof(*to);
	}
	return target;
}

static int open_one(const struct ip *ip, uint16_t port, unsigned ifindex, const char *device,
		    bool second)
{
	struct target self = sockets_target(ip, port, ifindex);
	int fd = socket(ip->family, SOCK_DGRAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);

	if (fd < 0)
		return -1;
	if (ip->family == AF_INET) {
		set(fd, IPPROTO_IP, IP_TOS, CLASS_CS6);
		set(fd, IPPROTO_IP, IP_MTU_DISCOVER, IP_PMTUDISC_PROBE);
	} else {
		set(fd, IPPROTO_IPV6, IPV6_V6ONLY, 1);
		set(fd, IPPROTO_IPV6, IPV6_TCLASS, CLASS_CS6);
		set(fd, IPPROTO_IPV6, IPV6_MTU_DISCOVER, IPV6_PMTUDISC_PROBE);
	}
	set(fd, SOL_SOCKET, SO_PRIORITY, PRIORITY);
	set(fd, SOL_SOCKET, SO_RCVBUFFORCE, RECEIVE_BYTES);
	if (!set(fd, SOL_SOCKET, SO_TIMESTAMPNS, 1) ||
	    (second && !set(fd, SOL_SOCKET, SO_REUSEPORT, 1)) ||
	    (device && setsockopt(fd, SOL_SOCKET, SO_BINDTODEVICE, device, (socklen_t)strlen(device))) ||
	    bind(fd, (struct sockaddr *)&self.address, self.size)) {
		int error = errno;

		close(fd);
		errno = error;
		return -1;
	}
	return fd;
}

/* A second socket on a rail's port, which gets what is urgent and is waited for: the rest is looked
 * at once a tick. The first is bound without SO_REUSEPORT: another fabric-pathd that has the port is
 * an error and no partner. (Linux 4.5; without, all of it waits for the tick.) */
static int open_urgent(int first, const struct ip *ip, uint16_t port, const struct rail *rail)
{
	struct sock_filter code[] = {
		BPF_STMT(BPF_LD | BPF_B | BPF_ABS, WIRE_FLAGS_AT),
		BPF_JUMP(BPF_JMP | BPF_JSET | BPF_K, WIRE_URGENT, 0, 1),
		BPF_STMT(BPF_RET | BPF_K, 1), /* in the order in which they were bound */
		BPF_STMT(BPF_RET | BPF_K, 0),
	};
	struct sock_fprog program = {sizeof(code) / sizeof(code[0]), code};
	int fd;

	if (!set(first, SOL_SOCKET, SO_REUSEPORT, 1))
		return -1;
	fd = open_one(ip, port, rail->ifindex, rail->conf->name, true);
	if (fd >= 0 && setsockopt(fd, SOL_SOCKET, SO_ATTACH_REUSEPORT_CBPF, &program, sizeof(program))) {
		close(fd);
		return -1;
	}
	return fd;
}

static unsigned read_mtu(int fd, const char *name)
{
	struct ifreq request = {0};

	snprintf(request.ifr_name, sizeof(request.ifr_name), "%s", name);
	return ioctl(fd, SIOCGIFMTU, &request) == 0 ? (unsigned)request.ifr_mtu : 1500;
}

static bool open_all(struct daemon *d, uint16_t port)
{
	for (unsigned i = 0; i < d->conf.rails; i++) {
		struct rail *rail = &d->rail[i];
		const struct ip *ip =
			rail->conf->net4.ip.family ? &rail->conf->net4.ip : &rail->conf->ip6;

		rail->socket = open_one(ip, port, rail->ifindex, rail->conf->name, false);
		if (rail->socket < 0)
			return false;
		rail->urgent = open_urgent(rail->socket, ip, port, rail);
		rail->mtu = read_mtu(rail->socket, rail->conf->name);
		if (ip_equal(ip, &d->conf.manage))
			d->manage = rail->socket;
	}
	if (d->manage < 0)
		d->manage = open_one(&d->conf.manage, port, 0, NULL, false);
	return d->manage >= 0;
}

void sockets_close(struct daemon *d)
{
	bool shared = false;

	for (unsigned i = 0; i < d->conf.rails; i++) {
		shared |= d->rail[i].socket == d->manage;
		if (d->rail[i].socket >= 0)
			close(d->rail[i].socket);
		if (d->rail[i].urgent >= 0)
			close(d->rail[i].urgent);
		d->rail[i].socket = d->rail[i].urgent = -1;
	}
	if (d->manage >= 0 && !shared)
		close(d->manage);
	d->manage = -1;
}

bool sockets_open(struct daemon *d, char *problem, size_t size)
{
	for (unsigned i = 0; i < d->conf.rails; i++)
		d->rail[i].socket = d->rail[i].urgent = -1;
	d->manage = -1;
	for (unsigned i = 0; i < CONF_PORTS && d->conf.port[i]; i++) {
		if (open_all(d, d->conf.port[i])) {
			d->port = d->conf.port[i];
			return true;
		}
		snprintf(problem, size, "UDP port %u: %s", d->conf.port[i], strerror(errno));
		sockets_close(d);
	}
	return false;
}

static uint64_t stamp_of(struct msghdr *msg, const struct stamping *stamping)
{
	for (struct cmsghdr *part = CMSG_FIRSTHDR(msg); part; part = CMSG_NXTHDR(msg, part)) {
		struct timespec stamp;

		if (part->cmsg_level != SOL_SOCKET || part->cmsg_type != SO_TIMESTAMPNS)
			continue;
		memcpy(&stamp, CMSG_DATA(part), sizeof(stamp));
		return stamping_mono_ns(stamping, (uint64_t)stamp.tv_sec * S + (uint64_t)stamp.tv_nsec);
	}
	return stamping->mono_ns;
}

/* Both clocks at the same time: not where we were pushed aside in between. */
static void look(struct stamping *stamping)
{
	uint64_t before, real, after;

	for (int i = 0; i < LOOKS; i++) {
		before = mono_ns();
		real = real_ns();
		after = mono_ns();
		if (after - before < LOOK_NS)
			break;
	}
	stamping_look(stamping, after, real + (after - before) / 2);
}

void sockets_class(int fd, const struct target *to, bool data)
{
	if (to->address.ss_family == AF_INET6)
		set(fd, IPPROTO_IPV6, IPV6_TCLASS, data ? 0 : CLASS_CS6);
	else
		set(fd, IPPROTO_IP, IP_TOS, data ? 0 : CLASS_CS6); /* resets the priority */
	set(fd, SOL_SOCKET, SO_PRIORITY, PRIORITY);
}

unsigned sockets_receive(int fd, struct received *many)
{
	static _Alignas(struct cmsghdr) char control[RECEIVE_BATCH][128];
	struct mmsghdr msg[RECEIVE_BATCH];
	struct iovec part[RECEIVE_BATCH];
	static struct stamping stamping;
	int got;

	for (unsigned i = 0; i < RECEIVE_BATCH; i++) {
		part[i] = (struct iovec){many[i].data, sizeof(many[i].data)};
		msg[i].msg_hdr = (struct msghdr){
			.msg_name = &many[i].from,
			.msg_namelen = sizeof(many[i].from),
			.msg_iov = &part[i],
			.msg_iovlen = 1,
			.msg_control = control[i],
			.msg_controllen = sizeof(control[i]),
		};
	}
	got = recvmmsg(fd, msg, RECEIVE_BATCH, MSG_DONTWAIT, NULL);
	if (got <= 0)
		return 0;
	look(&stamping);
	for (int i = 0; i < got; i++) {
		many[i].size = msg[i].msg_len;
		many[i].received_ns = stamp_of(&msg[i].msg_hdr, &stamping);
	}
	return (unsigned)got;
}

bool sockets_send(int fd, const struct target *to, const void *data, size_t size, bool as_data,
		  bool confirm)
{
	union {
		char data[CMSG_SPACE(sizeof(int))];
		struct cmsghdr align;
	} control = {0};
	struct iovec part = {(void *)data, size};
	struct msghdr msg = {
		.msg_name = (void *)&to->address,
		.msg_namelen = to->size,
		.msg_iov = &part,
		.msg_iovlen = 1,
	};

	if (as_data) { /* in the class of the job's own traffic */
		bool six = to->address.ss_family == AF_INET6;
		struct cmsghdr *class;

		msg.msg_control = control.data;
		msg.msg_controllen = sizeof(control.data);
		class = CMSG_FIRSTHDR(&msg);
		class->cmsg_level = six ? IPPROTO_IPV6 : IPPROTO_IP;
		class->cmsg_type = six ? IPV6_TCLASS : IP_TOS;
		class->cmsg_len = CMSG_LEN(sizeof(int));
	}
	/* MSG_CONFIRM: the peer was just heard there, its neighbour entry needs no new proof. */
	return sendmsg(fd, &msg, MSG_DONTWAIT | (confirm ? MSG_CONFIRM : 0)) == (ssize_t)size;
}
