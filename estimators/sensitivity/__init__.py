"""Sensitivity indices of functions of random inputs."""
