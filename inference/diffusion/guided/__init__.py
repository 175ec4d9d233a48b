"""Posteriors under diffusion priors, by particles guided down the reverse process."""
