"""Particle filters: bootstrap, guided and auxiliary; offline and online; forecasts."""
