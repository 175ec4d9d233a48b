"""Particle marginal Metropolis-Hastings."""
