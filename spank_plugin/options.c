/* The command-line options: checked where they are written, at submit. */
#include "fabric_spank.h"

#include <stdio.h>
#include <string.h>

struct options options_given;
static const struct args *site;

/* What Slurm makes of a bare --fabric-resilience depends on the context: no argument at login,
 * "(null)" where it went through the job control environment, "" in the batch step. */
static bool bare(const char *text)
{
	return !text || strcmp(text, "(null)") == 0;
}

int options_mode(const char *source, const char *text, enum mode *mode)
{
	enum mode wanted = MODE_ON;

	if (!bare(text) && mode_parse(text, &wanted)) {
		slurm_error("fabric: submit: %s=%.60s: not one of %s", source, text,
			    args_allowed(site));
		return -1;
	}
	if (!site->allowed[wanted]) {
		slurm_error("fabric: submit: %s=%s: this site allows %s", source, mode_name(wanted),
			    args_allowed(site));
		return -1;
	}
	*mode = wanted;
	return 0;
}

int options_spares(const char *source, const char *text, uint32_t *spares)
{
	uint32_t wanted;

	if (spares_parse(text ? text : "", &wanted)) {
		slurm_error("fabric: submit: %s=%.60s: not a number of nodes, 0 to %d", source,
			    text ? text : "", SPARES_LIMIT);
		return -1;
	}
	if (wanted > site->max_spares) {
		slurm_error("fabric: submit: %s=%u: this site allows at most %u", source, wanted,
			    site->max_spares);
		return -1;
	}
	*spares = wanted;
	return 0;
}

int options_share(const char *source, const char *text, char share[SHARE_SIZE])
{
	uint32_t guarantee;

	if (share_parse(text ? text : "", &guarantee)) {
		slurm_error("fabric: submit: %s=%.60s: not a share: say 60 or 60-80, in percent of "
			    "each rail",
			    source, text ? text : "");
		return -1;
	}
	if (guarantee > site->max_share) {
		slurm_error("fabric: submit: %s=%s: this site guarantees at most %u %%", source, text,
			    site->max_share);
		return -1;
	}
	snprintf(share, SHARE_SIZE, "%s", text);
	return 0;
}

int options_clock(const char *source, const char *text, enum steer *clock)
{
	enum steer wanted;

	if (steer_parse(text ? text : "", &wanted)) {
		slurm_error("fabric: submit: %s=%.60s: not one of page, ptp, system", source,
			    text ? text : "");
		return -1;
	}
	if (!site->allowed_clock[wanted]) {
		slurm_error("fabric: submit: %s=%s: this site allows %s", source, steer_name(wanted),
			    args_allowed_clock(site));
		return -1;
	}
	*clock = wanted;
	return 0;
}

/* On a node the value was checked already; one that is not ours must not hurt the step. */
static int on_resilience(int val, const char *text, int remote)
{
	enum mode mode = MODE_ON;

	(void)val;
	if (remote) {
		if (!bare(text) && *text && mode_parse(text, &mode))
			return 0;
	} else if (options_mode("--fabric-resilience", text, &mode)) {
		return -1;
	}
	options_given.mode_set = true;
	options_given.mode = mode;
	return 0;
}

static int on_spares(int val, const char *text, int remote)
{
	(void)val;
	if (remote)
		return 0;
	if (options_spares("--fabric-spares", text, &options_given.spares))
		return -1;
	options_given.spares_set = true;
	return 0;
}

static int on_share(int val, const char *text, int remote)
{
	(void)val;
	if (remote)
		return 0;
	if (options_share("--fabric-share", text, options_given.share))
		return -1;
	options_given.share_set = true;
	return 0;
}

static int on_clock(int val, const char *text, int remote)
{
	(void)val;
	if (remote)
		return 0;
	if (options_clock("--fabric-clock", text, &options_given.clock))
		return -1;
	options_given.clock_set = true;
	return 0;
}

static struct spank_option resilience = {
	.name = "fabric-resilience",
	.arginfo = "off|observe|on",
	.usage = "keep the job going through faults of the fabric, and tell where its time went: "
		 "observe measures, on acts too (the value needs the =, none means on)",
	.has_arg = 2, /* optional */
	.cb = on_resilience,
};
static struct spank_option spares = {
	.name = "fabric-spares",
	.arginfo = "N",
	.usage = "nodes of the allocation to hold back, to take the place of those that fail",
	.has_arg = 1,
	.cb = on_spares,
};

static struct spank_option share = {
	.name = "fabric-share",
	.arginfo = "PERCENT[-CEILING]",
	.usage = "part of every rail that is guaranteed to the job, and the most that it gets",
	.has_arg = 1,
	.cb = on_share,
};

static struct spank_option timekeeping = {
	.name = "fabric-clock",
	.arginfo = "page|ptp|system",
	.usage = "what follows the job's time: its page alone, the NICs' clocks too, or the system "
		 "clock",
	.has_arg = 1,
	.cb = on_clock,
};

void options_register(spank_t spank, const struct args *args)
{
	site = args;
	if (spank_option_register(spank, &resilience) != ESPANK_SUCCESS ||
	    spank_option_register(spank, &spares) != ESPANK_SUCCESS ||
	    spank_option_register(spank, &share) != ESPANK_SUCCESS ||
	    spank_option_register(spank, &timekeeping) != ESPANK_SUCCESS)
		slurm_error("fabric: init: options: Slurm did not take them");
}
