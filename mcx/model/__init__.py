"""The language: what a model is, and its compilation to a target."""

from mcx.model.bound import BoundModel, Model, model

__all__ = ["BoundModel", "Model", "model"]
