"""Orthonormal polynomials under Gaussian laws and independent inputs."""
