"""Markov blocks of models: ``mcx.markov`` and NumPyro's ``scan`` as state-space models."""
