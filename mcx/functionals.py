"""Ready additive functionals for :func:`mcx.smooth`."""

from mcx.inference.particle_gibbs.additive import covariances, cross_products, means, score

__all__ = ["covariances", "cross_products", "means", "score"]
