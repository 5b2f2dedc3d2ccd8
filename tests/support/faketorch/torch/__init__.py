"""As much of torch as a program under state.live needs, for tests: groups over TCP."""
