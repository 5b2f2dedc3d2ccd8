"""From what is found about nodes to what is done about it: a policy, with bounds."""
