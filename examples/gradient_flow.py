"""A cloud of points flows to another, down the gradient of their sliced Wasserstein distance.

Source and target are clouds of 1000 points in space: a sphere, and a trefoil knot far away from it. Every
step draws new directions; the printed distances have standard errors. Run it with `python
examples/gradient_flow.py`.
"""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from mcx.estimators.sliced import sliced_wasserstein

POINTS, STEPS, DIRECTIONS = 1000, 200, 32


def sphere(key):
    x = jax.random.normal(key, (POINTS, 3))
    return x / jnp.linalg.norm(x, axis=1, keepdims=True)


def knot(key):
    t = 2 * jnp.pi * jnp.arange(POINTS) / POINTS
    centre = [jnp.sin(t) + 2 * jnp.sin(2 * t), jnp.cos(t) - 2 * jnp.cos(2 * t), -jnp.sin(3 * t)]
    return jnp.stack(centre, 1) + 0.15 * jax.random.normal(key, (POINTS, 3)) + jnp.array([6.0, 0.0, 0.0])


@jax.jit
def flow(key, x, y):
    """The path of the cloud: (STEPS, POINTS, 3)."""

    def power(x, key):
        # fresh directions every step: control variates would only take time
        found = sliced_wasserstein(x, y, num_projections=DIRECTIONS, control_variates=None, key=key)
        return found.value**2

    def step(x, key):
        # the Hessian of the mean over directions is 2 / (3 POINTS): this is half of Newton's step
        x = x - 0.75 * POINTS * jax.grad(power)(x, key)
        return x, x

    return jax.lax.scan(step, x, jax.random.split(key, STEPS))[1]


def main(folder: Path = Path("out")):
    key_x, key_y, key_flow, key_error = jax.random.split(jax.random.key(0), 4)
    x, y = sphere(key_x), knot(key_y)
    path = jnp.concatenate([x[None], flow(key_flow, x, y)])
    shown = [0, 1, 3, 10, STEPS]
    for at in shown:
        found = sliced_wasserstein(path[at], y, num_projections=256, key=jax.random.fold_in(key_error, at))
        print(f"step {at:4d}: sliced Wasserstein distance {found.value:.5f} +- {found.se:.5f}")
    folder.mkdir(parents=True, exist_ok=True)
    np.savez(folder / "gradient_flow.npz", path=path[jnp.array(shown)], target=y, steps=shown)
    print(f"Saved the path:     {folder / 'gradient_flow.npz'}")
    plot(path, y, shown, folder / "gradient_flow.png")
    print(f"Saved the picture:  {folder / 'gradient_flow.png'}")


def plot(path, y, shown, file: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")  # no display needed
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(
        1, len(shown), figsize=(14, 3.2), sharex=True, sharey=True, layout="constrained"
    )
    for ax, at in zip(axes, shown, strict=True):
        ax.scatter(y[:, 0], y[:, 1], s=2, c="0.7")
        ax.scatter(path[at, :, 0], path[at, :, 1], s=2, c="C0")
        ax.set_title(f"step {at}")
        ax.set_aspect("equal")
    figure.savefig(file, dpi=120)


if __name__ == "__main__":
    main()
