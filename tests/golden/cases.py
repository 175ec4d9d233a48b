"""All cases, from the modules that define them."""

from importlib import import_module

from registry import CASES

MODULES = ("chains", "particles", "smoothing", "diffusion", "estimators", "combinators", "checkpoints")
for _name in MODULES:
    import_module(f"cases_{_name}")

__all__ = ["CASES"]
