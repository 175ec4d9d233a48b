"""Resampling schemes that users bring: what JAX would clamp or cast in silence is refused."""

import pytest

import mcx
from mcx.errors import MethodError
from mcx.inference.smc.resampling import as_resampling, systematic

WRONG = {
    "one too high": lambda key, log_w, num: systematic(key, log_w, num) + 1,
    "negative": lambda key, log_w, num: systematic(key, log_w, num) - 1,
    "floats": lambda key, log_w, num: systematic(key, log_w, num) * 1.0,
    "too few": lambda key, log_w, num: systematic(key, log_w, num - 1),
    "nothing": lambda key, log_w, num: None,
    "a list": lambda key, log_w, num: [0] * num,
}


@pytest.mark.parametrize("case", list(WRONG))
def test_what_gives_no_parents_is_refused(case):
    with pytest.raises(MethodError, match="no indices of parents"):
        mcx.ParticleFilter(resampling=WRONG[case])


def test_what_gives_parents_is_taken():
    def own(key, log_w, num):
        return systematic(key, log_w, num)

    def keep_first(key, log_w, num):
        """For conditional SMC: the first one stays, whatever its weight."""
        return systematic(key, log_w, num).at[0].set(0)

    for scheme in (own, keep_first):
        assert as_resampling(scheme) is scheme
        assert mcx.ParticleFilter(resampling=scheme).resampling is scheme
    with pytest.raises(MethodError, match="not a resampling scheme"):
        as_resampling(dict)
