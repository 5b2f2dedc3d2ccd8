/* Two jobs of one user on one node are two classes: by their control groups (version 2), in a network
 * namespace of this test's own. Needs root, and such a hierarchy in which groups can be made. */
#include "check.h"
#include "filter.h"
#include "slice.h"

#include <arpa/inet.h>
#include <net/if.h>
#include <sched.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#define USER 65533
#define RATE 12500000
#define PACKETS 20

static char tree[256]; /* where version 2 is mounted */

static bool find_tree(void)
{
	FILE *mounts = fopen("/proc/self/mounts", "re");
	char line[1024];
	bool found = false;

	while (mounts && !found && fgets(line, sizeof(line), mounts))
		found = sscanf(line, "cgroup%*[2] %255s cgroup2", tree) == 1;
	if (mounts)
		fclose(mounts);
	return found && access(tree, W_OK) == 0;
}

static void group_path(char path[512], int job)
{
	snprintf(path, 512, "%s/fabric-test-%d/job_%d", tree, (int)getpid(), job);
}

static bool make_group(int job)
{
	char path[512];

	group_path(path, job);
	return mkdir(path, 0755) == 0;
}

/* As a process of the user in the job's group, or in none. */
static void send_from(int job)
{
	struct sockaddr_in to = {.sin_family = AF_INET, .sin_port = htons(9)};
	char path[512], file[600];
	int status;
	pid_t child;

	group_path(path, job);
	snprintf(file, sizeof(file), "%s/cgroup.procs", path);
	inet_pton(AF_INET, "10.99.0.2", &to.sin_addr);
	child = fork();
	if (child == 0) {
		FILE *procs = job ? fopen(file, "we") : NULL;
		int fd;

		if (job && (!procs || fprintf(procs, "0") < 0 || fclose(procs) != 0))
			_exit(1);
		if (setuid(USER) != 0)
			_exit(2);
		fd = socket(AF_INET, SOCK_DGRAM, 0);
		for (int i = 0; i < PACKETS; i++)
			if (sendto(fd, "x", 1, 0, (struct sockaddr *)&to, sizeof(to)) != 1)
				_exit(3);
		_exit(0);
	}
	CHECK(child > 0 && waitpid(child, &status, 0) == child && status == 0);
}

/* Packets of a class as tc(8) tells them. */
static long sent(uint32_t class)
{
	char command[96], line[256];
	long packets = -1;
	FILE *said;

	snprintf(command, sizeof(command), "tc -s class show dev rail7 classid %x:%x", class >> 16,
		 class & 0xffff);
	said = popen(command, "re");
	while (said && fgets(line, sizeof(line), said))
		sscanf(line, " Sent %*d bytes %ld pkt", &packets);
	if (said)
		pclose(said);
	return packets;
}

int main(void)
{
	uint32_t first = SLICE_JOB(0), second = SLICE_JOB(1), rest = SLICE_HANDLE | 2;
	struct filter_group *group[2];
	struct rtnl rtnl;
	char path[512];
	int program[2], control, map;
	unsigned rail;

	if (geteuid() != 0 || !find_tree()) {
		printf("skipped: needs root, and control groups of version 2 that it may make\n");
		return 0;
	}
	snprintf(path, sizeof(path), "%s/fabric-test-%d", tree, (int)getpid());
	CHECK(mkdir(path, 0755) == 0);
	CHECK(unshare(CLONE_NEWNET) == 0);
	CHECK(system("ip link add rail7 type veth peer name far7 && ip link set far7 up && "
		     "ip address add 10.99.0.1/24 dev rail7 && ip link set rail7 up && "
		     "ip neigh add 10.99.0.2 lladdr 02:00:00:00:00:02 dev rail7") == 0);
	CHECK(rtnl_open(&rtnl, NETLINK_ROUTE, 0) == 0);
	rail = if_nametoindex("rail7");
	CHECK(slice_rail(&rtnl, rail, RATE, 400) == 0);
	control = filter_load_control(SLICE_CONTROL);
	for (unsigned slot = 0; slot < 2; slot++) {
		struct grant grant = {slot, 200, 1000, SHARE_NORMAL, false};

		group[slot] = filter_group_make(&map);
		CHECK(group[slot] && map >= 0);
		if (!group[slot])
			return 1;
		group[slot]->level = 2;
		program[slot] = filter_load_job(USER, SLICE_JOB(slot), map);
		CHECK(program[slot] >= 0 && control >= 0);
		close(map);
		CHECK(slice_grant(&rtnl, rail, RATE, &grant) == 0);
		CHECK(slice_filters(&rtnl, rail, slot, program[slot], control) == 0);
	}

	/* Before Slurm made their groups the user's packets are the first one's; then each job's are
	 * its own, and what the user sends outside of both is everybody's. */
	send_from(0);
	CHECK(sent(first) == PACKETS && sent(second) == 0);
	for (int slot = 0; slot < 2; slot++) {
		CHECK(make_group(slot + 1));
		group_path(path, slot + 1);
		filter_group_find(group[slot], path);
		CHECK(group[slot]->id != 0);
	}
	send_from(1);
	send_from(2);
	send_from(2);
	send_from(0);
	CHECK(sent(first) == 2 * PACKETS && sent(second) == 2 * PACKETS && sent(rest) >= PACKETS);

	/* All steps had ended, and the next one's group is a new one. */
	group_path(path, 1);
	CHECK(rmdir(path) == 0);
	filter_group_find(group[0], path);
	CHECK(group[0]->id == 0);
	CHECK(make_group(1));
	filter_group_find(group[0], path);
	send_from(1);
	CHECK(sent(first) == 3 * PACKETS && sent(second) == 2 * PACKETS);

	rmdir(path);
	group_path(path, 2);
	rmdir(path);
	*strrchr(path, '/') = '\0';
	CHECK(rmdir(path) == 0);
	return check_failures != 0;
}
