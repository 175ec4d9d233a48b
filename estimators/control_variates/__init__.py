"""Control variates: regression on functions with known means, Stein controls of posteriors."""
