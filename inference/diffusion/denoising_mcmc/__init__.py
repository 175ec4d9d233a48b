"""Denoising MCMC: Markov chains over points and noise levels."""
