"""Ten years of the S&P 500: particle Gibbs against Stan, the maximum of the likelihood against a grid."""

import numpy as np
import pytest
import scipy.optimize
import sp500

import mcx

RETURNS, BY_DAY = sp500.all_2516()


@pytest.mark.slow
def test_particle_gibbs_of_sp500(key):
    """2516 days. Parameters within 4 combined standard errors, a seventh of a posterior sd or less.

    So are the log volatilities but for chance: a standardised error of 5.5 has probability 1e-4 in 2516, and
    their mean square, which neighbouring days share, is 1 but for a few tenths.
    """
    states = mcx.ConditionalSMC(num_particles=25)
    method = mcx.ParticleGibbs(states=states, num_warmup=1000, num_samples=4000)
    post = mcx.infer(sp500.stochastic_volatility(RETURNS), method, key=key, progress=False, warnings="ignore")
    for name, (mean, se, sd) in sp500.DAYS_2516.items():
        sp500.check_against(post[name], mean, se, 1.5 * sd)
    off = np.array([sp500.errors_off(post["h"][..., t], BY_DAY[t, 0], 0.0012) for t in range(len(RETURNS))])
    assert off.max() < 5.5 and np.mean(off > 4) < 0.01 and np.mean(off**2) < 2


def likeliest():
    """Persistence, mean and scale."""

    def minus(u):
        return -sp500.log_likelihood(RETURNS, np.tanh(u[0]), u[1], np.exp(u[2]))

    start = [np.arctanh(0.95), -9.8, np.log(0.34)]
    best = scipy.optimize.minimize(minus, start, method="Nelder-Mead", options={"xatol": 1e-4, "fatol": 1e-6})
    assert best.success
    return np.tanh(best.x[0]), best.x[1], np.exp(best.x[2])


@pytest.mark.slow
def test_maximum_likelihood_of_sp500(key):
    """4 Monte Carlo errors, and those a fifth of a posterior sd or less."""
    bound = sp500.stochastic_volatility(RETURNS)
    init = {"half": 0.9, "mean": np.log(np.var(RETURNS)), "scale": 0.5}
    method = mcx.ScoreAscent(num_updates=400, num_information=0)
    found = mcx.maximize(bound, method=method, init=init, key=key, progress=False)
    params = dict(found.params, persistence=2 * found.params["half"] - 1)
    errors = dict(found.mc_se, persistence=2 * found.mc_se["half"])
    for name, best in zip(("persistence", "mean", "scale"), likeliest(), strict=True):
        assert errors[name] < 0.2 * sp500.DAYS_2516[name][2]
        assert abs(params[name] - best) < 4 * errors[name]
