"""Conditional SMC: particle systems given one of their paths, and the Markov kernel on paths made of them."""
