"""Rolling maintenance: a command on every node, with a bounded share of nodes out."""
