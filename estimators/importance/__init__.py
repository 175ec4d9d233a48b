"""Adaptive importance sampling, of laws and of posteriors."""
