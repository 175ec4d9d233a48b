"""How volatile is the S&P 500? Daily returns of ten years, filtered with a stochastic volatility model.

The parameters are held at their posterior means; data and reference answers: see data/README.md. Log
volatility is filtered (given the past), smoothed over a month, and returns are forecast. Then the parameters
of the last 100 days are learned along with the path, by SMC^2, and those weeks are weighed against a model
whose volatility is constant.
"""

from pathlib import Path

import jax.numpy as jnp
import numpy as np

import mcx
import mcx.dist as dist

PARAMETERS = {"persistence": 0.95419, "mean_log_volatility": -9.81861, "shock_scale": 0.33880}


@mcx.model
def constant_volatility(returns):
    mean = mcx.sample("mean_log_volatility", dist.Cauchy(0.0, 5.0))
    with mcx.plate("day", len(returns)):
        mcx.sample("r", dist.Normal(0.0, jnp.exp(mean / 2)), obs=returns)


@mcx.model
def stochastic_volatility(returns):
    persistence = 2 * mcx.sample("half_persistence", dist.Beta(20.0, 1.5)) - 1
    mean = mcx.sample("mean_log_volatility", dist.Cauchy(0.0, 5.0))
    scale = mcx.sample("shock_scale", dist.HalfCauchy(2.0))
    mcx.markov(
        "h",
        initial=lambda u: dist.Normal(mean, scale / jnp.sqrt(1 - persistence**2)),
        transition=lambda h, u: dist.Normal(mean + persistence * (h - mean), scale),
        emission=lambda h, u: dist.Normal(0.0, jnp.exp(h / 2)),
        obs=returns,
    )


def main(folder: Path = Path("out")):
    table = np.loadtxt(Path(__file__).parent / "data" / "sp500.csv", delimiter=",", skiprows=1)
    returns, stan_mean = table[:, 0].astype(np.float32), table[:, 1]
    sp500 = stochastic_volatility(returns)
    print("The model's sites\n")
    print(sp500.sites(), "\n")

    params = {
        "half_persistence": (PARAMETERS["persistence"] + 1) / 2,
        "mean_log_volatility": PARAMETERS["mean_log_volatility"],
        "shock_scale": PARAMETERS["shock_scale"],
    }
    filtered = mcx.filter(
        sp500, params=params, num_particles=2_000, history="full", quantiles=(0.05, 0.95), key=0
    )
    ahead = filtered.forecast(20, key=1)
    smoothed = filtered.smoothed_mean(21)["h"]
    print(f"\n{filtered}\n")
    difference = np.sqrt(np.mean((smoothed - stan_mean) ** 2))
    correlation = np.corrcoef(smoothed, stan_mean)[0, 1]
    print(f"smoothed log volatility against Stan's: off by {difference:.2f}, correlation {correlation:.3f}")
    low, high = ahead.quantiles([0.05, 0.95])["h_obs"][:, 0]
    print(f"tomorrow's return, 90 % band: {100 * low:+.2f} % to {100 * high:+.2f} %\n")

    learn(returns[-100:] - returns[-100:].mean())
    folder.mkdir(parents=True, exist_ok=True)
    tree = filtered.to_datatree()
    del tree["weighted_posterior"]  # 5 million particles: the summary is enough here
    tree.to_netcdf(folder / "stochastic_volatility.nc")
    plot(returns, filtered, smoothed, stan_mean, ahead, folder / "stochastic_volatility.png")
    print(f"Saved the run (DataTree):  {folder / 'stochastic_volatility.nc'}")
    print(f"Saved the picture:         {folder / 'stochastic_volatility.png'}")
    return filtered


def learn(returns):
    """Parameters, path and evidence of a short series, from the prior."""
    post = mcx.infer(stochastic_volatility(returns), mcx.SMC2(), key=2)
    print(f"The last {len(returns)} days\n{post}")
    low, high = mcx.forecast(post, 1, key=3).quantiles([0.05, 0.95])["h_obs"][:, 0]
    print(f"tomorrow's return, 90 % band: {100 * low:+.2f} % to {100 * high:+.2f} %")
    constant = mcx.infer(constant_volatility(returns), mcx.TemperedSMC(), key=4)
    gain = post.log_evidence - constant.log_evidence
    error = np.hypot(post.log_evidence_se, constant.log_evidence_se)
    print(f"log evidence against constant volatility: {gain:+.2f} +- {error:.2f}\n")


def plot(returns, filtered, smoothed, stan_mean, ahead, path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")  # no display needed
    import matplotlib.pyplot as plt

    def volatility(h):
        return 100 * np.exp(np.asarray(h) / 2)

    day = np.arange(len(returns))
    later = len(returns) + np.arange(20)
    low, high = filtered.quantiles["h"]
    f_low, f_high = ahead.quantiles([0.05, 0.95])["h"]
    figure, (top, bottom) = plt.subplots(2, 1, figsize=(10, 6), sharex=True, layout="constrained")
    top.plot(day, 100 * returns, color="0.4", lw=0.5)
    top.set(ylabel="return (%)")
    bottom.fill_between(
        day, volatility(low), volatility(high), color="C0", alpha=0.25, lw=0, label="filter, 90 %"
    )
    bottom.plot(day, volatility(smoothed), color="C1", lw=0.8, label="smoothed over 21 days")
    bottom.plot(day, volatility(stan_mean), "k--", lw=0.6, label="Stan, all days")
    bottom.fill_between(
        later, volatility(f_low), volatility(f_high), color="C2", alpha=0.4, lw=0, label="forecast"
    )
    bottom.set(xlabel="trading day", ylabel="daily volatility (%)")
    bottom.legend(fontsize=8)
    figure.savefig(path, dpi=150)


if __name__ == "__main__":
    main()
