"""Particle Gibbs: Markov kernels on paths made of particle systems."""
