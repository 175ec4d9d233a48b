"""Markov chains in models: ``mcx.markov`` and NumPyro's ``scan`` as state-space models."""
