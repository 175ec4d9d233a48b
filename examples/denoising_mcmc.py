"""Samples of a diffusion model at four calls a sample: denoising MCMC on a ring of eight Gaussians.

A sampler that starts from noise has to come all the way; a Markov chain over points and noise levels is
mostly near the data, and large levels take it from mode to mode. Prints sliced Wasserstein distances to exact
draws at equal numbers of calls, and draws a picture. Run it with `python examples/denoising_mcmc.py`.
"""

from pathlib import Path

import jax
import numpy as np

import mcx
from mcx.diffusion import DenoisingMCMC, DPMSolver, GaussianMixture, levels, sample

CHAINS, DRAWS = 400, 10
ANGLES = 2 * np.pi * np.arange(8) / 8
RING = GaussianMixture.of(
    means=4 * np.stack([np.cos(ANGLES), np.sin(ANGLES)], 1), covariances=0.01, weights=np.arange(1, 9) / 36
)


def from_noise(calls, key):
    down = levels(20.0, 0.002, calls - 1, power=7, to_zero=True)
    return sample(RING, CHAINS * DRAWS, (2,), down, key=key, method=DPMSolver(order=2))


def by_chains(calls, key, num_denoise):
    method = DenoisingMCMC(num_samples=DRAWS, num_warmup=50, num_denoise=num_denoise)
    found = method.run(RING, (2,), levels(20.0, 0.002, 199), key=key, num_chains=CHAINS, progress=False)
    assert found.nfe == calls
    return found


def main(folder: Path = Path("out")):
    exact = RING.sample(jax.random.key(0), 20_000)

    def distance(x):
        return mcx.sliced_wasserstein(x, exact, num_projections=128, key=1)

    shown, near = {"exact": np.asarray(exact[: CHAINS * DRAWS])}, {}
    for calls in (4, 5, 8):
        x, found = from_noise(calls, jax.random.key(2)), by_chains(calls, jax.random.key(3), calls - 2)
        shown[f"from noise, {calls} calls"], shown[f"chains, {calls} calls"] = np.asarray(x), found.x
        a, b = float(distance(x).value), float(distance(found.x.reshape(-1, 2)).value)
        near |= {f"from noise, {calls} calls": a, f"chains, {calls} calls": b}
        print(f"{calls} calls a draw: distance {a:.3f} from noise, {b:.3f} by chains")
    near["exact"] = float(distance(RING.sample(jax.random.key(4), CHAINS * DRAWS)).value)
    print(f"another set of exact draws: {near['exact']:.3f} (sliced Wasserstein distances)\n\n{found}")
    folder.mkdir(parents=True, exist_ok=True)
    found.to_datatree().to_netcdf(folder / "denoising_mcmc.nc")
    plot(shown, near, found, folder / "denoising_mcmc.png")
    print(f"Saved the run (DataTree):  {folder / 'denoising_mcmc.nc'}")
    print(f"Saved the picture:         {folder / 'denoising_mcmc.png'}")


def plot(shown, near, found, path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")  # no display needed
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(2, 3, figsize=(10, 6.5))
    names = [f"{start}, {calls} calls" for start in ("from noise", "chains") for calls in (4, 8)]
    names.insert(2, "exact")
    for axis, name in zip(axes.flat, names, strict=False):
        axis.plot(*shown[name].reshape(-1, 2).T, ".", ms=1.5, alpha=0.5, mew=0)
        axis.text(0.97, 0.03, f"{near[name]:.2f}", ha="right", transform=axis.transAxes)
        axis.set(title=name, xlim=(-6, 6), ylim=(-6, 6), aspect="equal", xticks=[], yticks=[])
    bins = np.geomspace(found.rho.min(), found.rho.max(), 31)
    axes[1, 2].hist(found.rho.ravel(), bins=bins)
    axes[1, 2].axhline(found.rho.size / 30, color="k", lw=1, ls="--", label="their law")
    axes[1, 2].set(title="noise levels of the chains, 8 calls", xlabel="level", xscale="log", ylabel="draws")
    axes[1, 2].legend(loc="lower right")
    figure.supxlabel("in the corner: sliced Wasserstein distance to exact draws", fontsize=9)
    figure.tight_layout()
    figure.savefig(path, dpi=130)
    plt.close(figure)


if __name__ == "__main__":
    main()
