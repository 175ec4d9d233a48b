"""The flow of the Nile, 1871-1970: a local level model, filtered, smoothed over ten years, and forecast.

Data: annual flow at Aswan in 1e8 m^3; see data/README.md. Variances as in Durbin and Koopman (2012),
chapter 2. The model is linear and Gaussian, so the exact answer is known: the run ends by comparing with it.
"""

from pathlib import Path

import jax.numpy as jnp
import numpy as np

import mcx
import mcx.dist as dist

LEVEL_VARIANCE, NOISE_VARIANCE = 1469.1, 15099.0
EXACT_LOG_EVIDENCE = -637.775522  # Kalman filter, level of 1871 ~ N(1120, 1450)


@mcx.model
def local_level(flow):
    mcx.markov(
        "level",
        initial=lambda u: dist.Normal(1120.0, jnp.sqrt(1450.0)),
        transition=lambda x, u: dist.Normal(x, jnp.sqrt(LEVEL_VARIANCE)),
        emission=lambda x, u: dist.Normal(x, jnp.sqrt(NOISE_VARIANCE)),
        obs=flow,
    )


def main(folder: Path = Path("out")):
    table = np.loadtxt(Path(__file__).parent / "data" / "nile.csv", delimiter=",", skiprows=1)
    year, flow = table[:, 0].astype(int), table[:, 1].astype(np.float32)
    nile = local_level(flow)
    print("The model's sites\n")
    print(nile.sites(), "\n")

    filtered = mcx.filter(
        nile,
        num_particles=5_000,
        num_chains=4,
        history="full",
        quantiles=(0.05, 0.95),
        coords={"time": year},
        key=0,
    )
    ahead = filtered.forecast(10, key=1)
    print(f"\n{filtered}\n")
    off = (filtered.log_evidence - EXACT_LOG_EVIDENCE) / filtered.log_evidence_se
    print(f"exact log evidence {EXACT_LOG_EVIDENCE:.3f}: {off:+.1f} standard errors away\n")

    folder.mkdir(parents=True, exist_ok=True)
    filtered.to_datatree().to_netcdf(folder / "nile.nc")
    plot(year, flow, filtered, ahead, folder / "nile.png")
    print(f"Saved the run (DataTree):  {folder / 'nile.nc'}")
    print(f"Saved the picture:         {folder / 'nile.png'}")
    return filtered


def plot(year, flow, filtered, ahead, path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")  # no display needed
    import matplotlib.pyplot as plt

    low, high = filtered.quantiles["level"]
    later = year[-1] + 1 + np.arange(10)
    f_low, f_mid, f_high = ahead.quantiles([0.05, 0.5, 0.95])["level_obs"]
    figure, axes = plt.subplots(figsize=(9, 4.5), layout="constrained")
    axes.plot(year, flow, "k.", ms=4, label="flow")
    axes.plot(year, filtered.mean["level"], color="C0", label="level given the past")
    axes.fill_between(year, low, high, color="C0", alpha=0.2, lw=0, label="its 90 % band")
    axes.plot(year, filtered.smoothed_mean(10)["level"], color="C1", label="given ten more years")
    axes.plot(later, f_mid, color="C2", label="forecast of the flow")
    axes.fill_between(later, f_low, f_high, color="C2", alpha=0.2, lw=0)
    axes.set(xlabel="year", ylabel="flow at Aswan (1e8 m$^3$)")
    axes.legend(ncols=2, fontsize=8)
    figure.savefig(path, dpi=150)


if __name__ == "__main__":
    main()
