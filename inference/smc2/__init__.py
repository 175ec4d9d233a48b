"""SMC^2: particles that are parameters, each with a particle filter of its own."""
