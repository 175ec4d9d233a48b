"""Handwritten digits by a small network: distance to real ones by calls of the model a draw.

The network of `examples/digits_inpainting.py` learns from half of the 8 x 8 digits. 2,000 draws come from
noise, along Karras' levels from 10 to 0; or of 200 chains (of 10 draws each, after 50 steps of warm-up) that
know a score alone: moves are not tested, and a classifier, trained here, tells a point's level.

    calls      of the network a draw; a chain's moves need one of the classifier as well, of about the same
               size, which is not counted. "to start": what chains need before, by draw
    distance   sliced Wasserstein distance to the other half of the digits, mean and standard deviation
    exact      of the digits that were learned from, which is what a perfect model would have
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from _report import command, machine, report

import mcx
from mcx.diffusion import (
    DDIM,
    DPMSolver,
    Heun,
    LevelsFromClassifier,
    Score,
    edm,
)

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "examples"))

import digits_inpainting as network  # noqa: E402
from denoising import Problem, by_chains, from_noise, table  # noqa: E402

GRID = np.geomspace(0.1, 5.0, 40)  # of the chains: Langevin moves without a test need a least level
STEP = 0.02  # squared length of their noise
CALLS = (4, 5, 8, 9, 17)
METHODS = {"DDIM": DDIM(), "DPM-Solver++ 2M": DPMSolver(order=2), "Heun": Heun()}


def classify(params: Any, y: Any) -> Any:
    """Logits of a point's level."""
    size = jnp.sqrt(jnp.mean(y**2))
    h = jnp.concatenate([y.ravel() / size, jnp.log(size)[None], jnp.log(jnp.mean(jnp.abs(y)))[None]])
    for w, b in params[:-1]:
        h = jax.nn.silu(h @ w + b)
    w, b = params[-1]
    return h @ w + b


@partial(jax.jit, static_argnames=("num_steps", "batch"))
def train_classifier(key: Any, images: Any, num_steps: int = 4000, batch: int = 256) -> tuple[Any, Any]:
    """Parameters and losses; cross entropy of levels that are uniform over the grid."""
    optimizer = optax.adam(optax.cosine_decay_schedule(2e-3, num_steps))
    sizes = [66, 256, 256, len(GRID)]
    keys = jax.random.split(key, 4)
    params = [
        (jax.random.normal(k, (m, n)) * (2 / m) ** 0.5, jnp.zeros(n))
        for k, m, n in zip(keys, sizes[:-1], sizes[1:], strict=False)
    ]

    def loss(params: Any, key: Any) -> Any:
        pick, level, noise = jax.random.split(key, 3)
        x = images[jax.random.randint(pick, (batch,), 0, len(images))]
        which = jax.random.randint(level, (batch,), 0, len(GRID))
        y = x + jnp.asarray(GRID, x.dtype)[which][:, None, None] * jax.random.normal(noise, x.shape)
        logits = jax.vmap(partial(classify, params))(y)
        return optax.softmax_cross_entropy_with_integer_labels(logits, which).mean()

    def step(carry: Any, number: Any) -> Any:
        params, state = carry
        value, slope = jax.value_and_grad(loss)(params, jax.random.fold_in(keys[3], number))
        update, state = optimizer.update(slope, state)
        return (optax.apply_updates(params, update), state), value

    (params, _), values = jax.lax.scan(step, (params, optimizer.init(params)), jnp.arange(num_steps))
    return params, values


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--train-steps", type=int, default=5000)
    parser.add_argument("--record", action="store_true", help="append the report to RESULTS.md")
    args = parser.parse_args()
    load, begun = os.getloadavg()[0], time.perf_counter()
    images, _ = network.digits()
    images = images[np.random.default_rng(0).permutation(len(images))]
    shown, hidden = images[:900], images[900:]
    params, losses = network.train(jax.random.key(0), shown, args.train_steps)
    classifier, entropies = train_classifier(jax.random.key(1), shown)
    loss, entropy = float(np.mean(losses[-500:])), float(np.mean(entropies[-500:]))
    trained = time.perf_counter() - begun
    print(f"trained in {trained:.0f} s: loss {loss:.3f}, cross entropy of levels {entropy:.3f}", flush=True)
    model = Score(jax.tree_util.Partial(network.denoise, params), edm(0.01, 40.0), kind="denoised")
    law = LevelsFromClassifier(jax.tree_util.Partial(classify, classifier))

    @jax.jit
    def distance(x: Any) -> Any:
        flat = jnp.asarray(x).reshape(len(x), -1), jnp.asarray(hidden).reshape(len(hidden), -1)
        return mcx.sliced_wasserstein(*flat, num_projections=512, key=jax.random.key(1)).value

    problem = Problem(model, (8, 8), (10.0, 0.02), GRID, 200, 10)
    starts = {
        "noise": partial(from_noise, problem),
        "chains": lambda method, calls: by_chains(
            problem, method, calls, level_law=law, metropolis=False, step_size=STEP
        ),
    }  # fmt: skip
    lines = table(starts, METHODS, distance, range(args.seeds), CALLS)
    lines.append(f"| exact | | {float(distance(shown)):.3f} |" + " |" * len(CALLS))
    how = (
        f"`{command()}`. {machine()}; "
        f"{args.seeds} seeds, trained in {trained:.0f} s (loss {loss:.3f}), all in "
        f"{time.perf_counter() - begun:.0f} s. Load average before: {load:.1f}; "
        f"after: {os.getloadavg()[0]:.1f}."
    )
    report("denoising MCMC on digits", how, lines, record=args.record)


if __name__ == "__main__":
    main()
