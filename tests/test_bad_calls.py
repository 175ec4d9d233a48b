"""Arguments that cannot be used are refused by an error of mcx that can be read, before anything compiles."""

import jax
import numpy as np
import pytest
from bad_calls import CALLS, CHAIN, VALUES, Y, chain, filtered, infer, normal

import mcx
import mcx.diffusion as diffusion
from mcx.errors import McxError, ModelError


@pytest.mark.parametrize("call", list(CALLS))
def test_what_cannot_be_used_is_refused(call):
    """Every kind of value but those that the argument takes; the error has words, and no traceback of JAX."""
    ask, usable = CALLS[call]
    wrong = {}
    for name, value in VALUES.items():
        if name.replace(" ", "_") in usable.split():
            continue
        try:
            ask(value)
            wrong[name] = "nothing was raised"
        except McxError as error:
            if len(str(error)) < 20 or error.__cause__ is not None:
                wrong[name] = repr(error)
        except BaseException as error:
            wrong[name] = f"{type(error).__name__}: {error}"
    assert not wrong, wrong


LISTS = ["list", "array", "column", "table", "decimal", "half"]


@pytest.mark.parametrize("kind", LISTS)
def test_what_can_be_used_is_used(kind):
    """Lists, columns and tables of numbers stand for their array."""
    value = VALUES[kind]
    array = np.asarray(value, np.float32)
    at = {"mu": 0.3, "sd": 0.7}
    assert normal(value).log_density(at) == pytest.approx(normal(array).log_density(at))
    if kind in ("list", "array", "column"):
        x = {"x": np.zeros(3)}
        assert chain(obs=value).log_density(x) == pytest.approx(chain(obs=array).log_density(x))


def test_traced_lists():
    density = jax.jit(lambda a: normal([a, 2 * a]).log_density({"mu": 0.0, "sd": 1.0}))
    assert density(1.0) == pytest.approx(normal(np.array([1.0, 2.0])).log_density({"mu": 0.0, "sd": 1.0}))


def test_errors_of_users_pass_through():
    """They are the user's, wherever they come from."""

    class Own(Exception):
        pass

    def fails(*args):
        raise Own("mine")

    for ask in (
        lambda: mcx.model(fails)().sites(),
        lambda: chain(initial=fails).sites(),
        lambda: infer(bound=mcx.model(fails)()),
        lambda: mcx.smooth(CHAIN, fails, key=0, progress=False),
        lambda: filtered(bound=chain(transition=fails)),
        lambda: diffusion.sample(diffusion.Score(fails, diffusion.edm()), 2, (2,), [3.0, 1.0], key=0),
    ):
        with pytest.raises(Own, match="mine"):
            ask()


def test_an_empty_product():
    with pytest.raises(McxError):
        diffusion.product()


def test_masked_data_are_named():
    with pytest.raises(McxError, match="masked entries"):
        normal(np.ma.MaskedArray(Y, [0, 0, 1]))
    assert normal(np.ma.MaskedArray(Y)).log_density({"mu": 0.0, "sd": 1.0})


def test_functions_that_return_nothing():
    """None is no number, and no Ctrl-C."""
    for nothing in (None, {}):
        with pytest.raises(McxError, match="no number|returns"):
            mcx.smooth(CHAIN, lambda a, b, t, x=nothing: x, key=0, progress=False)


def test_plates_of_numpyro():
    import numpyro

    with pytest.raises(ModelError, match="number of items"):
        mcx.model(lambda: numpyro.plate("p", 2.5))().sites()
