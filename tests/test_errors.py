"""Errors that need a setting of their own."""

import subprocess
import sys

import pytest

from mcx import errors


def test_strategies_without_hypothesis_name_the_extra():
    program = (
        "import sys; sys.modules['hypothesis'] = None\n"
        "import mcx.testing\n"  # needs no Hypothesis
        "try:\n"
        "    import mcx.testing.strategies\n"
        "except mcx.errors.MissingExtraError as error:\n"
        "    assert isinstance(error, ImportError)\n"
        "    print(error.remedy)\n"
    )
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "pip install 'mcx[testing]'"


@pytest.mark.parametrize("name", errors.__all__)
def test_every_error_is_one_of_mcx_and_of_a_builtin_kind(name):
    """So that `except ValueError` and the like keep working for those who do not know mcx's errors."""
    error = getattr(errors, name)
    if issubclass(error, Warning):
        return
    assert issubclass(error, errors.McxError)
    if error is not errors.McxError:
        builtin = (
            ValueError,
            TypeError,
            ArithmeticError,
            ImportError,
            MemoryError,
            RuntimeError,
            AssertionError,
        )
        assert issubclass(error, builtin)
