"""Estimators: importance sampling, control variates, sliced Wasserstein and others, one a file."""

if not __name__.startswith("mcx."):
    raise ImportError(
        f"This package is mcx.estimators, but it was imported as {__name__!r}: that loads a second copy. "
        "Write `import mcx.estimators` or `from mcx import estimators`."
    )
