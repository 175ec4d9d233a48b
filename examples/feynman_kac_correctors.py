"""Three laws made of diffusion models: putting scores together draws from something else; weights mend it.

A colder mixture, strong guidance and a product of two models, in the plane, where a grid tells the truth.
"Scores put together" follows the sum of the scores down the noise levels, as is common practice;
`mcx.diffusion.correct` carries the weights that this leaves out (Feynman-Kac correctors), and finds the
integral of the composition as well. Run it with `python examples/feynman_kac_correctors.py`.
"""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

import mcx
from mcx.diffusion import GaussianMixture, anneal, correct, corrector, geometric, levels, product

RHO = levels(40.0, 0.02, 300)
PARTICLES, REPLICATES = 2000, 4
REACH, CELLS = 7.0, 700  # of the grid: from -REACH to REACH

ANGLES = 2 * np.pi * np.arange(6) / 6
RING = GaussianMixture.of(
    means=4 * np.stack([np.cos(ANGLES), np.sin(ANGLES)], 1),
    covariances=np.array([0.1, 0.3, 0.6, 0.9, 1.2, 1.5]),
    weights=[0.08, 0.12, 0.16, 0.18, 0.21, 0.25],
)
# all classes, and the one that is asked for: two of the components
CLASSES = GaussianMixture.of(
    means=[[-2.0, 2.0], [2.0, 2.5], [0.5, 0.5], [-1.5, -2.5], [3.0, -2.0]],
    covariances=[0.8, 1.0, 1.2, 0.8, 1.0],
)
CLASS = GaussianMixture.of(means=CLASSES.means[:2], covariances=CLASSES.variances[:2])
ROWS = GaussianMixture.of(
    means=[[0.0, y] for y in (-3.5, 0.0, 3.5)],
    covariances=[[20.0, 0.05], [5.0, 0.3], [20.0, 0.1]],
    weights=[0.5, 0.2, 0.3],
)
COLUMNS = GaussianMixture.of(
    means=[[x, 0.0] for x in (-3.5, 0.0, 3.5)],
    covariances=[[0.1, 20.0], [0.3, 5.0], [0.05, 20.0]],
    weights=[0.4, 0.3, 0.3],
)

CASES = {
    "third power": ((RING,), anneal(RING, 3.0)),
    "guidance 4": ((CLASSES, CLASS), geometric(CLASSES, CLASS, 4.0)),
    "product": ((ROWS, COLUMNS), product(ROWS, COLUMNS)),
}


def on_grid(density):
    """Cells' centres, log densities there, and the log of their integral."""
    line = (np.arange(CELLS) + 0.5) / CELLS * 2 * REACH - REACH
    at = np.stack(np.meshgrid(line, line), -1).reshape(-1, 2)
    log_p = np.asarray(jax.jit(jax.vmap(density))(jnp.asarray(at)), float)
    return at, log_p, np.logaddexp.reduce(log_p) + 2 * np.log(2 * REACH / CELLS)


def exact_draws(density, num, seed=0):
    """From the grid's cells, uniform within them."""
    rng = np.random.default_rng(seed)
    at, log_p, log_z = on_grid(density)
    p = np.exp(log_p - log_p.max())
    cells = at[rng.choice(len(p), num, p=p / p.sum())]
    return cells + rng.uniform(-REACH / CELLS, REACH / CELLS, cells.shape), log_z


def put_together(composition, key):
    """The sum of scores as if it were a score: the corrector's particles without their weights."""
    model = corrector(composition, jnp.zeros(2), RHO, noise_gain=1.0)
    run = jax.jit(lambda k: mcx.smc(k, model, num_particles=PARTICLES * REPLICATES, threshold=0.0))
    return np.asarray(run(key).state.particles.position)


def main(folder: Path = Path("out")):
    shown = {}
    print(f"{'':14}sliced Wasserstein distance to exact draws{'':8}log evidence")
    print(f"{'':14}{'scores':>10}{'corrected':>12}{'exact':>10}{'corrected':>27}{'exact':>10}")
    for name, (models, composition) in CASES.items():

        def density(y, composition=composition):
            return composition.log_density(y, 0.0)

        truth, log_z = exact_draws(density, 40_000)
        other, _ = exact_draws(density, PARTICLES * REPLICATES, seed=1)
        naive = put_together(composition, jax.random.key(1))
        found = correct(
            composition, (2,), RHO, key=2, num_particles=PARTICLES, num_chains=REPLICATES, noise_gain=4.0,
            progress=False,
        )  # fmt: skip
        x, share = found.x.reshape(-1, 2), np.exp(found.weights).ravel()
        near = [
            float(mcx.sliced_wasserstein(draws, truth, x_weights=w, num_projections=128, key=3).value)
            for draws, w in ((naive, None), (x, share), (other, None))
        ]
        print(
            f"{name:14}{near[0]:10.3f}{near[1]:12.3f}{near[2]:10.3f}"
            f"{found.log_evidence:18.3f} +- {found.log_evidence_se:.3f}{log_z:10.3f}"
        )
        for note in found.notes:
            print("  note:", note)
        shown[name] = (models, {"exact draws": other, "scores put together": naive, "corrected": x}, near)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "feynman_kac_correctors.png"
    plot(shown, path)
    print(f"\nSaved the picture: {path}")


def plot(shown, path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")  # no display needed
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(len(shown), 4, figsize=(11, 8.6), sharex=True, sharey=True)
    for row, (name, (models, draws, near)) in zip(axes, shown.items(), strict=True):
        for model, color in zip(models, ("tab:blue", "tab:orange"), strict=False):
            at, log_p, _ = on_grid(lambda y, model=model: model.log_density(y, 0.0))
            x, y, p = (v.reshape(CELLS, CELLS) for v in (*at.T, np.exp(log_p)))
            row[0].contour(
                x, y, p, levels=p.max() * np.array([0.02, 0.1, 0.3, 0.7]), colors=color, linewidths=0.8
            )
        row[0].set_ylabel(name, fontsize=12)
        distances = {"scores put together": near[0], "corrected": near[1]}
        for axis, (title, x) in zip(row[1:], draws.items(), strict=True):
            axis.plot(*x[:: max(1, len(x) // 4000)].T, ".", ms=1.2, alpha=0.5, mew=0)
            if title in distances:
                axis.text(0.97, 0.03, f"{distances[title]:.2f}", ha="right", transform=axis.transAxes)
    for axis, title in zip(axes[0], ["models", *draws], strict=True):
        axis.set_title(title)
    for axis in axes.flat:
        axis.set(xlim=(-REACH, REACH), ylim=(-REACH, REACH), aspect="equal", xticks=[], yticks=[])
    figure.supxlabel("in the corner: sliced Wasserstein distance to exact draws", fontsize=9)
    figure.tight_layout()
    figure.savefig(path, dpi=130)
    plt.close(figure)


if __name__ == "__main__":
    main()
