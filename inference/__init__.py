"""Inference algorithms: one folder a family, one algorithm a file."""

if not __name__.startswith("mcx."):
    raise ImportError(
        f"This package is mcx.inference, but it was imported as {__name__!r}: that loads a second copy. "
        "Write `import mcx.inference` or `from mcx import inference`."
    )
