#include "rails.h"

#include <endian.h>
#include <errno.h>
#include <linux/errqueue.h>
#include <linux/net_tstamp.h>
#include <net/if.h>
#include <netdb.h>
#include <netinet/in.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

#define RECEIVE_BYTES (1 << 20) /* a tick's probes many times over, also after a long pause */
#define HEADERS_MAX 128 /* link, IPv6 and UDP headers before a looped probe, with room */
#define IP_UDP_BYTES 48 /* IPv6 and UDP; IPv4 needs 20 less */
#define UNSTAMPED_MAX 64 /* probes without a transmit stamp after which another kind is asked for */
#define JUDGED 32 /* probes each way after which it is looked whether the NIC's stamps come */
#define LARGEST 65000
#define STAMP_CONTROL CMSG_SPACE(sizeof(uint32_t))

static const int NO_FRAGMENTS = IP_PMTUDISC_DO;
static uint8_t padding[LARGEST]; /* what fills a probe to its size class: zeros */

bool rail_address(
	const char *text, uint16_t port, struct sockaddr_storage *address, socklen_t *size
)
{
	struct addrinfo hints = { .ai_flags = AI_NUMERICHOST | AI_NUMERICSERV, .ai_socktype = SOCK_DGRAM };
	struct addrinfo *found = NULL;
	char service[8];

	snprintf(service, sizeof(service), "%u", port);
	if (getaddrinfo(text, service, &hints, &found) || !found)
		return false;
	memset(address, 0, sizeof(*address));
	memcpy(address, found->ai_addr, found->ai_addrlen);
	*size = found->ai_addrlen;
	freeaddrinfo(found);
	return true;
}

static int ask_stamps(int fd, bool hardware)
{
	int flags = SOF_TIMESTAMPING_SOFTWARE | SOF_TIMESTAMPING_RX_SOFTWARE;

	if (hardware) /* both of what leaves: a NIC that has no room for one more stamp gives none */
		flags |= SOF_TIMESTAMPING_RAW_HARDWARE | SOF_TIMESTAMPING_RX_HARDWARE
			 | SOF_TIMESTAMPING_OPT_TX_SWHW;

	return setsockopt(fd, SOL_SOCKET, SO_TIMESTAMPING, &flags, sizeof(flags));
}

static unsigned payload_of(const char *interface, int fd)
{
	struct ifreq request = { 0 };

	strncpy(request.ifr_name, interface, sizeof(request.ifr_name) - 1);
	if (ioctl(fd, SIOCGIFMTU, &request) < 0 || request.ifr_mtu < 1280)
		return 1280 - IP_UDP_BYTES; /* what every IPv6 link carries */
	return request.ifr_mtu - IP_UDP_BYTES < LARGEST ? (unsigned)request.ifr_mtu - IP_UDP_BYTES
							: LARGEST;
}

int rail_open(
	struct rail *rail, const char *address, uint16_t port, const char *interface, int phc
)
{
	struct sockaddr_storage own;
	socklen_t size = 0;
	int fd, bytes = RECEIVE_BYTES, result;

	if (!rail_address(address, port, &own, &size))
		return -EINVAL;
	fd = socket(own.ss_family, SOCK_DGRAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
	if (fd < 0)
		return -errno;
	/* Without it a probe could leave by another rail whose network is the same. Unprivileged
	 * since Linux 5.7; before, the route decides. */
	setsockopt(fd, SOL_SOCKET, SO_BINDTODEVICE, interface, (socklen_t)strlen(interface));
	setsockopt(fd, SOL_SOCKET, SO_RCVBUF, &bytes, sizeof(bytes));
	if (own.ss_family == AF_INET)
		setsockopt(fd, IPPROTO_IP, IP_MTU_DISCOVER, &NO_FRAGMENTS, sizeof(NO_FRAGMENTS));
	else
		setsockopt(fd, IPPROTO_IPV6, IPV6_MTU_DISCOVER, &NO_FRAGMENTS, sizeof(NO_FRAGMENTS));
	if (bind(fd, (struct sockaddr *)&own, size) || ask_stamps(fd, phc >= 0)
	    || getsockname(fd, (struct sockaddr *)&own, &size)) {
		result = -errno;
		close(fd);
		return result;
	}
	*rail = (struct rail){
		.fd = fd,
		.family = own.ss_family,
		.port = ntohs(((struct sockaddr_in *)&own)->sin_port), /* IPv6 has it in the same place */
		.mtu_payload = payload_of(interface, fd),
		.transmit = STAMP_SOFTWARE,
		.phc = phc,
	};
	return 0;
}

unsigned rail_probe_bytes(const struct rail *rail, unsigned size_class)
{
	unsigned bytes = size_class == 2 ? rail->mtu_payload : rail->mtu_payload / 2;

	return size_class == 0 || bytes < PROBE_BYTES ? PROBE_BYTES : bytes;
}

/* Which transmit stamp is wanted of one message, told beside it (socket-wide they would all be
 * stamped, and a stamp costs as much as a probe). */
static void ask_stamp(struct msghdr *message, uint8_t *room, const struct rail *rail)
{
	uint32_t flags = rail->transmit == STAMP_SCHED ? SOF_TIMESTAMPING_TX_SCHED
						       : SOF_TIMESTAMPING_TX_SOFTWARE;
	struct cmsghdr *c;

	if (rail->phc >= 0)
		flags |= SOF_TIMESTAMPING_TX_HARDWARE;

	message->msg_control = room;
	message->msg_controllen = STAMP_CONTROL;
	c = CMSG_FIRSTHDR(message);
	c->cmsg_level = SOL_SOCKET;
	c->cmsg_type = SO_TIMESTAMPING;
	c->cmsg_len = CMSG_LEN(sizeof(flags));
	memcpy(CMSG_DATA(c), &flags, sizeof(flags));
}

void rail_send(struct rail *rail, const struct rail_out *out, unsigned count)
{
	struct mmsghdr messages[RAIL_BATCH] = { 0 };
	struct iovec parts[RAIL_BATCH][2];
	_Alignas(struct cmsghdr) uint8_t control[RAIL_BATCH][STAMP_CONTROL] = { 0 };

	for (unsigned i = 0; i < count; i++) {
		struct msghdr *message = &messages[i].msg_hdr;

		parts[i][0] = (struct iovec){ (void *)&out[i].probe, PROBE_BYTES };
		parts[i][1] = (struct iovec){ padding, out[i].bytes - PROBE_BYTES };
		message->msg_name = (void *)out[i].to;
		message->msg_namelen = out[i].to_size;
		message->msg_iov = parts[i];
		message->msg_iovlen = out[i].bytes > PROBE_BYTES ? 2 : 1;
		if (out[i].stamped && (rail->transmit != STAMP_USER || rail->phc >= 0))
			ask_stamp(message, control[i], rail);
	}
	for (unsigned done = 0; done < count;) {
		int sent = sendmmsg(rail->fd, messages + done, count - done, MSG_DONTWAIT);

		for (int i = 0; i < sent; i++) {
			rail->asked += out[done + (unsigned)i].stamped;
			rail->lately.sent += out[done + (unsigned)i].stamped;
		}
		done += sent > 0 ? (unsigned)sent : 1; /* one that fails does not keep the others back */
	}
}

/* The kernel's own stamp and the NIC's, as far as there are any; false: neither. */
static bool stamps_of(struct msghdr *message, int64_t *real_ns, int64_t *phc_ns)
{
	for (struct cmsghdr *c = CMSG_FIRSTHDR(message); c; c = CMSG_NXTHDR(message, c)) {
		struct timespec t[3];

		if (c->cmsg_level != SOL_SOCKET || c->cmsg_type != SO_TIMESTAMPING)
			continue;
		memcpy(t, CMSG_DATA(c), sizeof(t));
		*real_ns = t[0].tv_sec * 1000000000LL + t[0].tv_nsec;
		*phc_ns = t[2].tv_sec * 1000000000LL + t[2].tv_nsec;
		return *real_ns || *phc_ns;
	}
	return false;
}

/* Reads a batch; the number of messages, 0 when there are none. */
static int read_batch(
	int fd,
	int flags,
	uint8_t *data,
	size_t each,
	struct mmsghdr messages[RAIL_BATCH],
	struct iovec parts[RAIL_BATCH],
	uint8_t control[RAIL_BATCH][256]
)
{
	int count;

	for (int i = 0; i < RAIL_BATCH; i++) {
		parts[i] = (struct iovec){ data + (size_t)i * each, each };
		messages[i].msg_hdr = (struct msghdr){
			.msg_iov = &parts[i],
			.msg_iovlen = 1,
			.msg_control = control[i],
			.msg_controllen = 256,
		};
	}
	count = recvmmsg(fd, messages, RAIL_BATCH, flags | MSG_DONTWAIT, NULL);
	return count < 0 ? 0 : count;
}

int rail_read_arrived(struct rail *rail, struct rail_arrived arrived[RAIL_BATCH])
{
	uint8_t data[RAIL_BATCH][PROBE_BYTES], control[RAIL_BATCH][256];
	struct mmsghdr messages[RAIL_BATCH];
	struct iovec parts[RAIL_BATCH];
	int count = read_batch(rail->fd, 0, data[0], PROBE_BYTES, messages, parts, control);

	for (int i = 0; i < count; i++) {
		memset(&arrived[i], 0, sizeof(arrived[i])); /* from 0: nobody's */
		arrived[i].probe.from = UINT32_MAX;
		if (messages[i].msg_len < PROBE_BYTES
		    || !stamps_of(&messages[i].msg_hdr, &arrived[i].real_ns, &arrived[i].phc_ns))
			continue;
		memcpy(&arrived[i].probe, data[i], PROBE_BYTES);
		if (le32toh(arrived[i].probe.magic) != PROBE_MAGIC)
			arrived[i].probe.from = UINT32_MAX;
	}
	return count;
}

/* The probe that a transmit stamp came back with, after headers of unknown length. */
static bool find_probe(const uint8_t *data, size_t size, uint64_t session, struct probe *probe)
{
	for (size_t at = 0; at + PROBE_BYTES <= size && at <= HEADERS_MAX; at += 2) {
		uint32_t magic;

		memcpy(&magic, data + at, sizeof(magic));
		if (le32toh(magic) != PROBE_MAGIC)
			continue;
		memcpy(probe, data + at, PROBE_BYTES);
		return le64toh(probe->session) == session;
	}
	return false;
}

int rail_read_sent(struct rail *rail, uint64_t session, struct rail_sent sent[RAIL_BATCH])
{
	static __thread uint8_t data[RAIL_BATCH][HEADERS_MAX + sizeof(struct probe)];
	uint8_t control[RAIL_BATCH][256];
	struct mmsghdr messages[RAIL_BATCH];
	struct iovec parts[RAIL_BATCH];
	int count = read_batch(
		rail->fd, MSG_ERRQUEUE, data[0], sizeof(data[0]), messages, parts, control
	);

	for (int i = 0; i < count; i++) {
		struct probe probe;

		sent[i] = (struct rail_sent){ .to = UINT32_MAX };
		if (!stamps_of(&messages[i].msg_hdr, &sent[i].real_ns, &sent[i].phc_ns)
		    || !find_probe(data[i], messages[i].msg_len, session, &probe))
			continue;
		sent[i].to = le32toh(probe.to);
		sent[i].seq = le32toh(probe.seq);
		rail->stamped += sent[i].real_ns != 0;
	}
	return count;
}

void rail_choose_stamps(struct rail *rail)
{
	if (!rail->stamped && rail->asked >= UNSTAMPED_MAX && rail->transmit != STAMP_USER) {
		rail->transmit = rail->transmit == STAMP_SOFTWARE ? STAMP_SCHED : STAMP_USER;
		rail->asked = 0;
	}
	if (rail->phc < 0 || rail->lately.sent < JUDGED || rail->lately.arrived < JUDGED)
		return;
	/* Of both ways the same: what lies between the kernel's stamp and the NIC's would else look
	 * like an asymmetric path. */
	rail->hardware = 2 * rail->lately.sent_hardware > rail->lately.sent
			 && 2 * rail->lately.arrived_hardware > rail->lately.arrived;
	memset(&rail->lately, 0, sizeof(rail->lately));
}
