"""Markov chain Monte Carlo on a target's unconstrained space, with BlackJAX's kernels."""
