"""Diffusion models: noise schedules, scores, compositions, reverse processes and priors."""
