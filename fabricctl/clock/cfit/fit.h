/* One edge, one window: the widest band between the packets of both directions. What it means,
 * and why, is told in fabricctl/clock/fit.py, whose inner part this is. */
#ifndef FABRIC_CLOCK_FIT_H
#define FABRIC_CLOCK_FIT_H

#include <stddef.h>
#include <stdint.h>

/* The samples of one direction, all of which lie above a line. Those of the other direction lie
 * below it: they are given mirrored, time and value negated, and then lie above it as well. */
struct fit_side {
	double *s, *ns; /* seconds from the window's centre; reordered by fit_edge */
	size_t count;
};

struct fit_given {
	double near_ns; /* samples within this of the edge count as undelayed */
	double slope_sigma_ppb, slope_ppb; /* what is known of the slope before looking */
};

/* FIT of fit.py; NaN where the window says nothing. */
struct fit_found {
	double offset_ns, slope_ppb, ceiling_ns, floor_ns, sigma_ns;
	double hard_above_ns, hard_below_ns;
	int64_t near_above, near_below, used_above, used_below;
};

struct fit_found fit_edge(
	struct fit_side above, struct fit_side below, const struct fit_given *given
);

#endif
