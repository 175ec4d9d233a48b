"""Integrators of diffusion models: from noise to data along the probability flow, or the reverse equation."""
