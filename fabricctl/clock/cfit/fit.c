#include "fit.h"

#include <math.h>
#include <stdbool.h>

#define STEPS 40 /* cutting planes: 4-8 are used */
#define DRIFT_MAX_PPB 5e5 /* of two clocks against each other; quartz is within 100 ppm */
#define CROWD 5 /* samples near an edge below which the edge may stand on early stamps */
#define PEELS 3

/* Of a concave, piecewise linear function of the slope: its value there and how it changes. */
struct tangent {
	double at, level, rise;
};

static double level(const struct fit_side *side, double slope, size_t i)
{
	return side->ns[i] - slope * side->s[i];
}

/* The lowest sample along a slope; with two sides, which then face each other, the band's width. */
static struct tangent touch(const struct fit_side *one, const struct fit_side *other, double slope)
{
	struct tangent found = { slope, 0, 0 };

	for (int part = 0; part < 2; part++) {
		const struct fit_side *side = part ? other : one;
		size_t lowest = 0;

		if (!side)
			continue;
		for (size_t i = 1; i < side->count; i++)
			if (level(side, slope, i) < level(side, slope, lowest))
				lowest = i;
		found.level += level(side, slope, lowest);
		found.rise -= side->s[lowest];
	}
	return found;
}

/* The top of that function within [low, high]; ``peak`` is never below it. Tangents from both
 * sides meet above the top, and the tangent there replaces one of them until they meet on it. */
static struct tangent
top(const struct fit_side *one, const struct fit_side *other, double low, double high, double *peak)
{
	struct tangent left = touch(one, other, low), right = touch(one, other, high), here;

	here = left.rise <= 0 ? left : right;
	*peak = here.level;
	if (left.rise <= 0 || right.rise >= 0)
		return here;
	*peak = INFINITY;
	for (int step = 0; step < STEPS; step++) {
		double at = (right.level - left.level - right.rise * right.at + left.rise * left.at)
			    / (left.rise - right.rise);
		double meeting;

		at = fmin(fmax(at, left.at), right.at);
		here = touch(one, other, at);
		meeting = left.level + left.rise * (at - left.at);
		if (here.rise == 0 || fabs(meeting - here.level) < 1e-6 * (1 + fabs(here.level))) {
			*peak = fmax(meeting, here.level);
			break;
		}
		if (here.rise > 0)
			left = here;
		else
			right = here;
	}
	return here;
}

static double lowest_level(const struct fit_side *side, double slope)
{
	double least = INFINITY;

	for (size_t i = 0; i < side->count; i++)
		least = fmin(least, level(side, slope, i));
	return least;
}

/* Moves the samples within ``near`` of the lowest to the front; how many there are. */
static size_t gather(struct fit_side *side, double slope, double near)
{
	double edge = lowest_level(side, slope);
	size_t found = 0;

	for (size_t i = 0; i < side->count; i++) {
		double s = side->s[i], ns = side->ns[i];

		if (level(side, slope, i) > edge + near)
			continue;
		side->s[i] = side->s[found];
		side->ns[i] = side->ns[found];
		side->s[found] = s;
		side->ns[found++] = ns;
	}
	return found;
}

/* Without samples that stand alone outside a crowd: stamps taken early. They stay where no crowd
 * is uncovered: on a loaded path few undelayed samples are normal. */
static struct fit_side peeled(struct fit_side side, double slope, double near)
{
	struct fit_side rest = side;

	for (int i = 0; i < PEELS && rest.count; i++) {
		size_t close = gather(&rest, slope, near);

		if (close >= CROWD)
			return rest;
		rest = (struct fit_side){ rest.s + close, rest.ns + close, rest.count - close };
	}
	return rest.count && gather(&rest, slope, near) >= CROWD ? rest : side;
}

struct crowd {
	double count, mean_s, mean_ns;
};

static struct crowd crowd_of(const struct fit_side *side, size_t count)
{
	struct crowd found = { (double)count, 0, 0 };

	for (size_t i = 0; i < count; i++) {
		found.mean_s += side->s[i] / found.count;
		found.mean_ns += side->ns[i] / found.count;
	}
	return found;
}

static void
add_products(const struct fit_side *side, const struct crowd *crowd, double *stt, double *sty)
{
	for (size_t i = 0; i < (size_t)crowd->count; i++) {
		double dt = side->s[i] - crowd->mean_s, dy = side->ns[i] - crowd->mean_ns;

		*stt += dt * dt;
		*sty += dt * dy;
	}
}

static double misfit(const struct fit_side *side, const struct crowd *crowd, double slope)
{
	double sum = 0;

	for (size_t i = 0; i < (size_t)crowd->count; i++) {
		double off = side->ns[i] - crowd->mean_ns - slope * (side->s[i] - crowd->mean_s);

		sum += off * off;
	}
	return sum;
}

/* Two parallel lines by least squares through the samples near the band's edges. What is known of
 * the slope enters as one more observation; without it few samples close together in time would
 * turn the line freely. */
static void refine(
	struct fit_side *above, struct fit_side *below, double slope, const struct fit_given *given,
	struct fit_found *found
)
{
	struct crowd a = crowd_of(above, gather(above, slope, given->near_ns));
	struct crowd b = crowd_of(below, gather(below, slope, given->near_ns));
	double noise = given->near_ns / 4, ridge = noise / given->slope_sigma_ppb;
	double stt = ridge * ridge, sty = ridge * ridge * given->slope_ppb, variance, lever;

	add_products(above, &a, &stt, &sty);
	add_products(below, &b, &stt, &sty);
	found->slope_ppb = sty / stt;
	found->ceiling_ns = a.mean_ns - found->slope_ppb * a.mean_s;
	found->floor_ns = found->slope_ppb * b.mean_s - b.mean_ns;
	found->offset_ns = (found->ceiling_ns + found->floor_ns) / 2;
	/* A few samples cannot know their own scatter: the stamps' noise counts as four more. */
	variance = misfit(above, &a, found->slope_ppb) + misfit(below, &b, found->slope_ppb);
	variance = (variance + 4 * noise * noise) / (a.count + b.count);
	lever = (a.mean_s - b.mean_s) / 2;
	found->sigma_ns =
		sqrt(variance * ((1 / a.count + 1 / b.count) / 4 + lever * lever / stt));
	found->near_above = (int64_t)a.count;
	found->near_below = (int64_t)b.count;
}

struct fit_found fit_edge(
	struct fit_side above, struct fit_side below, const struct fit_given *given
)
{
	struct fit_found found = {
		NAN, NAN, NAN, NAN, NAN, NAN, NAN, 0, 0, (int64_t)above.count, (int64_t)below.count,
	};
	double low = given->slope_ppb - 3 * given->slope_sigma_ppb;
	double high = given->slope_ppb + 3 * given->slope_sigma_ppb, peak, slope;

	if (above.count < 2 || below.count < 2)
		return found;
	top(&above, NULL, -DRIFT_MAX_PPB, DRIFT_MAX_PPB, &found.hard_above_ns);
	top(&below, NULL, -DRIFT_MAX_PPB, DRIFT_MAX_PPB, &peak);
	found.hard_below_ns = -peak;
	slope = top(&above, &below, low, high, &peak).at;
	above = peeled(above, slope, given->near_ns);
	below = peeled(below, slope, given->near_ns);
	refine(&above, &below, slope, given, &found);
	return found;
}
