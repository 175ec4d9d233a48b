"""Smoothing: expectations of additive functionals of a path given all observations."""
