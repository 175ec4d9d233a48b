"""Diffusion models: what :mod:`mcx.diffusion` gives."""
