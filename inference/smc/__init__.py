"""Sequential Monte Carlo: one loop over Feynman-Kac models, and what it is made of."""
