"""Feynman-Kac correctors of compositions of diffusion models."""
