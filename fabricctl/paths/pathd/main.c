/* fabric-pathd: keeps what one job's ranks send over TCP on rails that work.
 *
 *   fabric-pathd run < CONFIGURATION          until SIGTERM, or the job is over
 *   fabric-pathd clean LEASES [JOB...]        removes what no living fabric-pathd holds, except
 *                                             for the jobs named
 *
 * `run` is two processes: the worker, and a guardian that starts it again when it dies. Routes
 * stay as they are meanwhile, so the job goes on. Both hold the job's lease. */
#include "daemon.h"
#include "lease.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/capability.h>
#include <sched.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define REALTIME_PRIORITY 10
#define REALTIME_LIMIT_US 500000 /* without one wait: a loop run wild must not keep a core */
#define RESTART_FIRST_MS 20
#define RESTART_MAX_MS 5000
#define EXIT_REFUSED 71 /* EX_OSERR of sysexits.h, as fabricctl uses it */

static struct daemon daemon_state;
static volatile sig_atomic_t asked_to_stop;
static pid_t worker;

static void pass_on(int signal)
{
	(void)signal;
	asked_to_stop = 1;
	if (worker > 0)
		kill(worker, SIGTERM);
}

/* Root keeps three capabilities only; a user needs to have been given them. */
static void drop_capabilities(void)
{
	struct __user_cap_header_struct head = {.version = _LINUX_CAPABILITY_VERSION_3};
	struct __user_cap_data_struct data[2];
	unsigned keep = 1u << CAP_NET_ADMIN | 1u << CAP_SYS_NICE | 1u << CAP_IPC_LOCK;

	for (int cap = 0; cap <= CAP_LAST_CAP; cap++)
		if (cap >= 32 || !(keep >> cap & 1))
			prctl(PR_CAPBSET_DROP, cap, 0, 0, 0);
	if (syscall(SYS_capget, &head, data) != 0)
		return;
	data[0].effective &= keep;
	data[0].permitted &= keep;
	data[1].effective = data[1].permitted = 0;
	data[0].inheritable = data[1].inheritable = 0;
	syscall(SYS_capset, &head, data);
	prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
}

/* As many of them as we are allowed: the verdicts hold without, only later. */
static bool become_prompt(void)
{
	struct sched_param priority = {.sched_priority = REALTIME_PRIORITY};
	struct rlimit locked = {RLIM_INFINITY, RLIM_INFINITY};
	struct rlimit slice = {REALTIME_LIMIT_US, REALTIME_LIMIT_US};

	setrlimit(RLIMIT_MEMLOCK, &locked);
	mlockall(MCL_CURRENT | MCL_FUTURE);
	prctl(PR_SET_TIMERSLACK, 1000, 0, 0, 0);
	setrlimit(RLIMIT_RTTIME, &slice);
	if (sched_setscheduler(0, SCHED_FIFO, &priority) == 0)
		return true;
	setpriority(PRIO_PROCESS, 0, -20);
	return false;
}

static int run_worker(bool adopted)
{
	struct daemon *d = &daemon_state;
	pid_t guardian = getppid();
	int status;

	d->realtime = become_prompt();
	d->phase = adopted ? PHASE_HAVE : PHASE_STARTING;
	d->monitor.fd = d->control = d->manage = d->waited = -1;
	status = loop_run(d);
	if (getppid() != guardian) /* it was killed: nobody else is there to clean up */
		lease_release(d->conf.leases, d->mover.slot, d->conf.job);
	return status;
}

static void pause_ms(unsigned ms)
{
	struct timespec time = {ms / 1000, (long)(ms % 1000) * 1000000};

	nanosleep(&time, NULL);
}

/* The status of a worker that ended by itself. */
static int guard(bool adopted)
{
	struct sigaction action = {.sa_handler = pass_on};
	unsigned wait_ms = RESTART_FIRST_MS;
	sigset_t asking, before;
	int status = 0;

	sigemptyset(&asking);
	sigaddset(&asking, SIGTERM);
	sigaddset(&asking, SIGINT);
	sigprocmask(SIG_BLOCK, &asking, &before);
	sigaction(SIGTERM, &action, NULL);
	sigaction(SIGINT, &action, NULL);
	while (!asked_to_stop) {
		uint64_t begin = mono_ns();

		/* Blocked until the worker's pid is known: else nobody would tell it to stop. */
		sigprocmask(SIG_BLOCK, &asking, NULL);
		if (asked_to_stop)
			break;
		worker = fork();
		if (worker < 0)
			return EXIT_REFUSED;
		if (worker == 0) {
			signal(SIGTERM, SIG_DFL);
			signal(SIGINT, SIG_DFL);
			sigprocmask(SIG_SETMASK, &before, NULL);
			_exit(run_worker(adopted));
		}
		sigprocmask(SIG_SETMASK, &before, NULL);
		while (waitpid(worker, &status, 0) < 0 && errno == EINTR)
			;
		worker = 0;
		if (WIFEXITED(status) && WEXITSTATUS(status) != LOOP_AGAIN &&
		    (WEXITSTATUS(status) == 0 || !adopted))
			return WEXITSTATUS(status);
		if (loop_job_is_over(&daemon_state.conf))
			return 0; /* one that cannot start does not look itself */
		adopted = true;
		wait_ms = mono_ns() - begin > 10 * S ? RESTART_FIRST_MS : wait_ms;
		pause_ms(wait_ms);
		wait_ms = 2 * wait_ms < RESTART_MAX_MS ? 2 * wait_ms : RESTART_MAX_MS;
	}
	return 0;
}

static int run(void)
{
	struct conf *conf = &daemon_state.conf;
	char problem[160];
	bool adopted;
	int lease, status;

	if (!conf_read(conf, stdin, problem, sizeof(problem))) {
		fprintf(stderr, "fabric: paths: %s\n", problem);
		return 2;
	}
	lease = lease_take(conf, &daemon_state.mover.slot, &adopted);
	if (lease < 0) {
		fprintf(stderr, "fabric: paths: lease of job %lu in %s: %s\n", conf->job, conf->leases,
			strerror(errno));
		return errno == EALREADY ? 0 : EXIT_REFUSED;
	}
	pacing_load(&daemon_state);
	drop_capabilities();
	status = guard(adopted);
	if (lease_release(conf->leases, daemon_state.mover.slot, conf->job) < 0)
		fprintf(stderr, "fabric: paths: clean-up of job %lu: %s\n", conf->job, strerror(errno));
	close(lease);
	return status;
}

static int clean(int argc, char **argv)
{
	unsigned long keep[256];
	size_t keeps = 0;
	int removed;

	for (int i = 3; i < argc && keeps < sizeof(keep) / sizeof(keep[0]); i++)
		keep[keeps++] = strtoul(argv[i], NULL, 10);
	removed = shared_clean(argv[2], keep, keeps);
	if (removed < 0) {
		fprintf(stderr, "fabric: paths: clean-up in %s: %s\n", argv[2], strerror(errno));
		return EXIT_REFUSED;
	}
	printf("removed=%d\n", removed);
	return 0;
}

int main(int argc, char **argv)
{
	if (argc == 2 && !strcmp(argv[1], "run"))
		return run();
	if (argc >= 3 && !strcmp(argv[1], "clean"))
		return clean(argc, argv);
	fprintf(stderr, "usage: fabric-pathd run < CONFIGURATION\n"
			"       fabric-pathd clean LEASES [JOB...]\n");
	return 2;
}
