/* fabric-pathd of one job on one node: what its parts share. One thread, one loop (loop.c). */
#ifndef FABRIC_DAEMON_H
#define FABRIC_DAEMON_H

#include "cause.h"
#include "conf.h"
#include "event.h"
#include "filter.h"
#include "mover.h"
#include "pace.h"
#include "pair.h"
#include "reroute.h"
#include "wire.h"

#include <netinet/in.h>
#include <signal.h>
#include <sys/socket.h>

#define WATCHED_SOCKETS 64
#define PAST_SESSIONS 4

struct target {
	struct sockaddr_storage address;
	socklen_t size; /* 0: the peer has no address that we could reach there */
};

/* The streams of one fabric address that were waiting when it was moved. */
struct recovery {
	uint64_t moved_ns, next_look_ns; /* 0: nothing to watch */
	uint64_t begin_ns;
	bool looked;
	unsigned count, stuck;
	uint64_t waiting_bytes;
	struct {
		uint16_t source_port, to_port;
		uint64_t acked_bytes;
	} stream[WATCHED_SOCKETS];
};

struct peer {
	unsigned number;
	const struct conf_node *node;
	bool known; /* its hello was believed: it knew our session */
	bool routed; /* its routes are in the kernel */
	bool reinstall;
	enum phase phase;
	uint64_t session, past[PAST_SESSIONS]; /* of past ones nothing is believed again */
	uint16_t port; /* 0: not yet known, try all */
	struct target hello, probe[MAX_RAILS];
	uint64_t next_hello_ns, hello_wait_ns, hello_answer_ns;
	uint64_t hello_sequence, hello_seen; /* ours, and the newest of this session */

	struct pair pair;
	struct mover_peer route;
	uint8_t loaded[MAX_RAILS]; /* members of its groups as a fabric-pathd before us left them */
	uint64_t sequence[MAX_RAILS];
	uint64_t echo_sent_ns[MAX_RAILS], echo_received_ns[MAX_RAILS];
	uint64_t next_send_ns, last_send_ns, next_look_ns, active_until_ns;
	unsigned open; /* TCP streams to it */
	uint64_t streamed, streamed_before; /* what they carried both ways, at the last two looks */
	uint64_t received, received_before; /* bytes from it */
	uint64_t room, room_before; /* what the segments that brought them could have held */
	bool long_messages; /* from it, lately */
	uint64_t received_ns; /* newest trusted message of any kind, hellos too */
	uint8_t told_level[MAX_RAILS]; /* what the last event said */
	struct recovery recovery[MAX_RAILS];
	struct reroute reroute;
};

struct rail {
	const struct conf_rail *conf;
	unsigned ifindex, mtu, fabric_ifindex;
	int socket, urgent; /* urgent: -1 where the kernel cannot tell such probes apart */
	bool carrier, drained;
	uint64_t ask_until_ns; /* its carrier came back: everybody's link-layer address is asked for */
	struct cause cause;
	double load; /* part of its rate that this node sends, lately */
	uint64_t sent_bytes, say_paced_ns;
	uint8_t hears; /* percent of the peers that are heard here; 255: no peers */
};

/* Whose fabric address it is; sorted by address. */
struct owner {
	struct ip ip;
	uint32_t peer;
	uint8_t rail;
};

struct daemon {
	struct conf conf;
	struct mover mover;
	struct rtnl monitor, diag;
	struct events events;
	struct rail rail[MAX_RAILS];
	struct peer *peer; /* conf.nodes of them; the one of ourselves is unused */
	struct owner *owner; /* of every fabric address of the others; owners of them */
	size_t owners;
	int manage, control, waited; /* waited: the epoll set of what is waited for */
	uint16_t port;
	uint64_t session, started_ns, now_ns;
	enum phase phase;
	char why[160]; /* of PHASE_OFF */
	unsigned off_origin; /* the node that could not take part in the first place */
	unsigned active; /* peers with traffic */
	unsigned quiet; /* peers with streams that carry nothing */
	unsigned watched; /* recoveries that are waited for */
	unsigned turn;
	bool late, realtime;
	uint64_t next_manage_ns, next_diag_ns, next_second_ns, next_census_ns, probes_sent, probes_received, moves;
	bool state_changed, rules_gone;
	bool port_anew; /* a rail's interface is another device: the next worker takes it */
	uint64_t next_rules_ns, next_neighbours_ns, acks_ns;
	unsigned next_neighbour;
	int program[2], program_error; /* filters of a share: by uid, and for probes; -1: none */
	uint8_t sliced; /* rails where the job has its share */
	struct filter_group *group; /* what its filter compares with; NULL: the uid alone */
	uint64_t next_group_ns;
	struct grant grant;
	struct pace pace[MAX_RAILS];
	uint64_t next_reroute_ns, load_ns;
	uint64_t hurry_until_ns; /* a peer is in doubt and waits for our answers */
	uint64_t urgent_ns; /* when an urgent probe woke us last */
};

/* sockets.c */
bool sockets_open(struct daemon *d, char *problem, size_t size);
void sockets_close(struct daemon *d);
struct target sockets_target(const struct ip *ip, uint16_t port, unsigned ifindex);
struct received {
	uint8_t data[WIRE_MAX];
	size_t size;
	uint64_t received_ns; /* the kernel's time of arrival, on CLOCK_MONOTONIC */
	struct sockaddr_storage from;
};
#define RECEIVE_BATCH 16
/* Up to RECEIVE_BATCH; fewer: nothing is left. */
unsigned sockets_receive(int fd, struct received *many);
/* Packets to come are data to the network, and yet no part of the job's share here: they measure
 * what waits on the way, not what we hold back ourselves. */
void sockets_class(int fd, const struct target *to, bool data);
bool sockets_send(int fd, const struct target *to, const void *data, size_t size, bool as_data,
		  bool confirm);

/* hello.c */
void hello_received(struct daemon *d, const struct wire *wire, const struct sockaddr_storage *from);
void hello_turn(struct daemon *d);
void hello_off(struct daemon *d, unsigned origin, const char *why);

/* probing.c */
void probing_receive(struct daemon *d);
void probing_send(struct daemon *d, struct peer *peer, uint8_t flags); /* enum wire_flag */
uint64_t probing_interval_ns(const struct daemon *d, const struct peer *peer);
uint64_t probing_idle_ns(const struct daemon *d); /* to a peer without traffic */
uint64_t probing_doubt_ns(const struct daemon *d, const struct peer *peer); /* while in doubt about it */
void probing_turn(struct daemon *d);

/* moving.c */
bool moving_setup(struct daemon *d, char *problem, size_t size);
void moving_peer_known(struct daemon *d, struct peer *peer);
void moving_look(struct daemon *d, struct peer *peer);
void moving_carrier(struct daemon *d, unsigned rail, bool carrier);
void moving_address_gone(struct daemon *d, const struct ip *ip);
void moving_rules(struct daemon *d);
void moving_drain(struct daemon *d, unsigned rail, bool drained);

/* cause.c */
void cause_find(struct daemon *d);

/* traffic.c: what the kernel's TCP sockets tell */
void traffic_poll(struct daemon *d);
void traffic_watch(struct daemon *d, struct peer *peer, unsigned rail, uint64_t begin_ns);
void traffic_turn(struct daemon *d);
void traffic_index(struct daemon *d); /* after a peer's addresses became known */

/* pacing.c: the job's share, its pace, another way round a queue */
void pacing_load(struct daemon *d); /* while root */
void pacing_setup(struct daemon *d); /* with the node's lock held */
void pacing_turn(struct daemon *d);

/* waiting.c */
bool waiting_open(struct daemon *d);
void waiting_until(struct daemon *d, uint64_t until_ns, const sigset_t *waiting); /* of signals */

/* links.c */
bool links_open(struct daemon *d, char *problem, size_t size);
void links_read(struct daemon *d);

/* neighbours.c */
void neighbours_turn(struct daemon *d);

/* control.c */
bool control_open(struct daemon *d);
void control_serve(struct daemon *d);

/* byhand.c: what was asked for by `fabricctl path`, for a worker that follows one that died */
bool byhand_save(const struct daemon *d);
void byhand_load(struct daemon *d);

/* state.c: the files `state` and `env` of the job */
void state_write(struct daemon *d);

/* shared.c: leases, devices and sysctls, shared by the jobs of a node */
bool shared_setup(struct daemon *d, char *problem, size_t size);
int shared_rules(struct daemon *d);
int lease_release(const char *leases, unsigned slot, unsigned long job);
int shared_clean(const char *leases, const unsigned long *keep, size_t keeps);

/* loop.c */
#define LOOP_AGAIN 75 /* EX_TEMPFAIL: the guardian starts the next worker */
int loop_run(struct daemon *d);
bool loop_job_is_over(const struct conf *conf); /* as far as a look can tell */
void loop_stop(void); /* at the end of this turn */

#endif
