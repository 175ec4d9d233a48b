"""SMC samplers: tempering and data annealing of static models."""
