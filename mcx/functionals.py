"""Ready additive functionals for :func:`mcx.smooth`."""

from mcx.inference.smoothing.additive import covariances, cross_products, means, score

__all__ = ["covariances", "cross_products", "means", "score"]
