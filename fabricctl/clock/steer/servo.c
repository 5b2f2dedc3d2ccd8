/* The servo: how fast the clock runs by itself is learned from readings, whatever frequency was in
 * force meanwhile; what is set is the opposite of that and a fraction of the offset. So a limit on
 * the frequency winds nothing up, and a clock that is far off is approached in a straight line. */
#include "steer.h"

#include <math.h>

#define LEARN_LEAST 0.2 /* weight of a reading once there are five: noise of 50 ns moves it by 14 ppb */

void servo_begin(struct servo *servo, double found_ppb, double most_ppb)
{
	*servo = (struct servo){
		.found_ppb = found_ppb, .most_ppb = most_ppb, .applied_ppb = found_ppb
	};
}

static double bounded(const struct servo *servo, double ppb)
{
	double low = fmax(-servo->most_ppb, servo->found_ppb - STEER_SLEW_PPB);
	double high = fmin(servo->most_ppb, servo->found_ppb + STEER_SLEW_PPB);

	return fmin(fmax(ppb, low), high);
}

double servo_turn(struct servo *servo, int64_t raw_ns, double off_ns, double period_s)
{
	double passed_s = (double)(raw_ns - servo->raw_ns) * 1e-9;

	if (servo->placed && passed_s > 0) {
		double free_ppb = (off_ns - servo->off_ns) / passed_s - servo->applied_ppb;
		double weight = fmax(1.0 / ++servo->readings, LEARN_LEAST);

		servo->drift_ppb += weight * (free_ppb - servo->drift_ppb);
	}
	servo->placed = true;
	servo->raw_ns = raw_ns;
	servo->off_ns = off_ns;
	/* The first reading says where it is, not how fast it runs: nothing is changed yet. */
	if (servo->readings > 0)
		servo->applied_ppb =
			bounded(servo, -servo->drift_ppb - off_ns / (STEER_TAU * period_s));
	return servo->applied_ppb;
}

double servo_hold(struct servo *servo)
{
	servo->placed = false;
	if (servo->readings > 0)
		servo->applied_ppb = bounded(servo, -servo->drift_ppb);
	return servo->applied_ppb;
}
