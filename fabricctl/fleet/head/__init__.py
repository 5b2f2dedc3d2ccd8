"""The head service: what all nodes report, in one place, for views of the whole cluster."""
