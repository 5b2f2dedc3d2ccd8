"""A clock page's body as an agent that is sure of its clock writes it."""

from dataclasses import replace

from fabricctl.clock.page import SYNCHRONISED, Body

SURE_S = 60  # before it counts as holding over


def sure(raw_ns: int, **changes: float) -> Body:
    """Known at ``raw_ns``: likely to 53 ns, certain from 700 ns before to 600 after."""
    body = Body(
        status=SYNCHRONISED,
        state_raw_ns=raw_ns,
        p_theta=100.0,
        p_drift=1.0,
        wander2=1.0,
        sigmas=3.3,
        asymmetry_ns=20.0,
        hard_raw_ns=raw_ns,
        hard_least_ns=-600.0,
        hard_most_ns=700.0,
        hard_drift_ppb=5.0,
        holdover_raw_ns=raw_ns + SURE_S * 10**9,
    )
    return replace(body, **changes)  # type: ignore[arg-type]
