"""Four particles in the plane (DW-4): a diffusion model of one temperature, made to sample another.

The energy of a pair at distance d is ``0.9 (d - 4)^4 - 4 (d - 4)^2``; the centre of mass stays at 0, so that
points have 6 coordinates. A small equivariant network learns to denoise draws at temperature 2. Feynman-Kac
correctors draw from its square, which is the law at temperature 1, and from the model times
``exp(-0.15 |x|^2)``. References come from tempered SMC on the energy, and count if the virial theorem holds:
``E[x . grad U] = 6 T``.

    gain       b, of the noise; 1 / 2 is what Skreta et al. (2025) call tempered noise, 1 their target score
    weights    no: particles as they arrive, which is what putting scores together does
    SW         sliced Wasserstein distance of the coordinates
    distances  Wasserstein-1 distance of the distances between particles
    energies   Wasserstein-1 distance of the energies
    ESS        effective sample size in the end, of all particles; "starts": share that draws descend from
    log Z      log integral of the composition, less that of the references
    exact      another set of reference draws: what no sampler can go below

The network's own error is in all rows: "T = 2 from noise" is the model itself against what it learned.
"""

from __future__ import annotations

import argparse
import os
import time
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from _report import command, machine, report
from scipy.stats import wasserstein_distance

import mcx
import mcx.dist as dist
from mcx.diffusion import DPMSolver, Score, anneal, correct, corrector, edm, levels, sample

HERE = Path(__file__).resolve().parent
FIRST, SECOND = np.triu_indices(4, 1)
# columns that are orthonormal and orthogonal to the centre of mass, (4, 3)
FREE = np.linalg.svd(np.eye(4) - 0.25)[0][:, :3].astype(np.float32)
BETWEEN = FREE[FIRST] - FREE[SECOND]  # differences of pairs, (6, 3)
TOUCH = (np.arange(4)[:, None] == FIRST) | (np.arange(4)[:, None] == SECOND)  # particle x pair
EVENT, WIDE, REWARD = (3, 2), 3.0, 0.15
RHO = levels(40.0, 0.02, 400)
PARTICLES, REPLICATES, WIDTH = 1000, 4, 48
GAINS = {"T = 1": (0.5, 1.0, 2.0, 4.0), "reward": (1.0, 3.0)}


def distances(z: Any) -> Any:
    return jnp.linalg.norm(BETWEEN @ z, axis=-1)


def energy(z: Any) -> Any:
    gap = distances(z) - 4.0
    return jnp.sum(0.9 * gap**4 - 4.0 * gap**2)


def reward(z: Any) -> Any:
    return -jnp.sum(z**2)


@mcx.model
def four(temperature: Any, shrink: Any) -> None:
    z = mcx.sample("z", dist.Normal(0.0, WIDE).expand(EVENT).to_event(2))
    back = 0.5 * jnp.sum(z**2) / WIDE**2 + 0.5 * z.size * jnp.log(2 * jnp.pi * WIDE**2)
    mcx.factor("boltzmann", -energy(z) / temperature + shrink * reward(z) + back)


class Reference(NamedTuple):
    """Draws, as many others, the log of the partition function, and the virial over what it should be."""

    truth: np.ndarray
    other: np.ndarray
    log_z: float
    virial: str


def reference(key: int, temperature: float, shrink: float) -> Reference:
    """By tempered SMC: three clouds of particles for the truth, one to compare with it."""
    method = mcx.TemperedSMC(PARTICLES * REPLICATES)
    post = mcx.infer(four(temperature, shrink), method, key=key, num_chains=4, progress=False)
    z = np.asarray(post["z"])
    pull = jax.jit(jax.vmap(jax.vmap(jax.grad(lambda z: energy(z) / temperature - shrink * reward(z)))))
    terms = np.sum(z * np.asarray(pull(z)), (2, 3)) / 6
    virial, se = terms.mean(), terms.std() / terms.size**0.5
    means = np.asarray(jax.jit(jax.vmap(jax.vmap(energy)))(z)).mean(1)
    print(
        f"T = {temperature}, reward {shrink}: virial {virial:.3f} +- {se:.3f}, log Z {post.log_evidence:.3f} "
        f"+- {post.log_evidence_se:.3f}, mean energies {means}",
        flush=True,
    )
    if abs(virial - 1) > 4 * se:
        raise SystemExit("the references do not fulfil the virial theorem: this run does not count")
    return Reference(z[:3].reshape(-1, *EVENT), z[3], float(post.log_evidence), f"{virial:.3f} +- {se:.3f}")


# --- the denoiser: two rounds of messages between pairs, equivariant; preconditioning of Karras et al. (2022)


def layers(key: Any, sizes: list[int]) -> list[tuple[Any, Any]]:
    keys = jax.random.split(key, len(sizes) - 1)
    return [
        (jax.random.normal(k, (m, n)) / m**0.5, jnp.zeros(n))
        for k, m, n in zip(keys, sizes[:-1], sizes[1:], strict=True)
    ]


def through(net: Any, x: Any) -> Any:
    for w, b in net[:-1]:
        x = jax.nn.silu(x @ w + b)
    w, b = net[-1]
    return x @ w + b


def initialize(key: Any) -> list[Any]:
    sizes = [[10, WIDTH, WIDTH], [3 * WIDTH, WIDTH, WIDTH], [3 * WIDTH, WIDTH, 1]]
    return [layers(k, s) for k, s in zip(jax.random.split(key, 3), sizes, strict=True)]


def denoise(spread: float, params: Any, z: Any, rho: Any) -> Any:
    """The mean of the clean point, of one point (3, 2)."""
    total = rho**2 + spread**2
    gap = BETWEEN @ z / jnp.sqrt(total)
    d = jnp.sqrt(jnp.sum(gap**2, -1, keepdims=True) + 1e-6)
    angles = jnp.log(rho) * jnp.array([0.25, 0.5, 1.0, 2.0])
    noise = jnp.broadcast_to(jnp.concatenate([jnp.sin(angles), jnp.cos(angles)]), (6, 8))
    m = jnp.tanh(through(params[0], jnp.concatenate([d, d**2, noise], -1)))
    for net in params[1:]:  # messages are bounded, or far points would be sent further
        h = TOUCH @ m
        a, b = h[FIRST], h[SECOND]
        found = through(net, jnp.concatenate([m, a + b, a * b], -1))
        m = jnp.tanh(m + found) if net is not params[-1] else found
    return z * spread**2 / total + BETWEEN.T @ (m * gap) * rho * spread / jnp.sqrt(total)


@partial(jax.jit, static_argnames=("num_steps", "batch"))
def train(key: Any, draws: Any, spread: Any, num_steps: int, batch: int = 256) -> tuple[Any, Any]:
    optimizer = optax.chain(
        optax.clip_by_global_norm(1.0), optax.adam(optax.cosine_decay_schedule(2e-3, num_steps))
    )
    key_start, key_run = jax.random.split(key)

    def loss(params: Any, key: Any) -> Any:
        keys = jax.random.split(key, 3)
        z = draws[jax.random.randint(keys[0], (batch,), 0, len(draws))]
        rho = spread * jnp.exp(-1.2 + 1.4 * jax.random.normal(keys[1], (batch,)))
        noisy = z + rho[:, None, None] * jax.random.normal(keys[2], z.shape)
        error = jax.vmap(partial(denoise, spread, params))(noisy, rho) - z
        return jnp.mean(jnp.sum(error**2, (1, 2)) * (rho**2 + spread**2) / (rho * spread) ** 2) / 6

    def step(carry: Any, number: Any) -> Any:
        params, state, mean = carry
        value, slope = jax.value_and_grad(loss)(params, jax.random.fold_in(key_run, number))
        update, state = optimizer.update(slope, state)
        params = optax.apply_updates(params, update)
        mean = optax.incremental_update(params, mean, 2e-3 + 0.5 / (1 + number))
        return (params, state, mean), value

    start = initialize(key_start)
    (_, _, mean), values = jax.lax.scan(step, (start, optimizer.init(start), start), jnp.arange(num_steps))
    return mean, values


# --- what is measured ------------------------------------------------------------------------------


def quality(z: np.ndarray, truth: np.ndarray, share: Any = None) -> dict[str, float]:
    flat = z.reshape(len(z), 6), truth.reshape(len(truth), 6)
    sliced = mcx.sliced_wasserstein(*flat, x_weights=share, num_projections=128, key=1).value
    pairs = [np.asarray(jax.vmap(distances)(v)) for v in (z, truth)]
    energies = [np.asarray(jax.vmap(energy)(v)) for v in (z, truth)]
    six = None if share is None else np.repeat(share, 6)
    return {
        "SW": float(sliced),
        "distances": wasserstein_distance(pairs[0].ravel(), pairs[1].ravel(), six),
        "energies": wasserstein_distance(*energies, share),
    }


@jax.jit
def unweighted(key: Any, model: Any) -> Any:
    """Particles as they arrive."""
    result = mcx.smc(key, model, num_particles=PARTICLES * REPLICATES, threshold=0.0)
    return result.state.particles.position


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--train-steps", type=int, default=6000)
    parser.add_argument("--record", action="store_true", help="append the report to RESULTS.md")
    args = parser.parse_args()
    load, begun = os.getloadavg()[0], time.perf_counter()
    hot = reference(0, 2.0, 0.0)
    truths = {"T = 1": reference(1, 1.0, 0.0), "reward": reference(2, 2.0, REWARD)}
    sampled = time.perf_counter() - begun
    print(f"references: {sampled:.0f} s", flush=True)

    spread = float(np.sqrt(np.mean(hot.truth**2)))
    begun = time.perf_counter()
    params, losses = jax.block_until_ready(train(jax.random.key(0), hot.truth, spread, args.train_steps))
    trained = time.perf_counter() - begun
    print(f"trained in {trained:.0f} s, loss {np.mean(losses[-500:]):.4f}", flush=True)
    score = Score(jax.tree_util.Partial(denoise, spread, params), edm(0.002, 80.0), kind="denoised")
    tasks = {"T = 1": anneal(score, 2.0), "reward": anneal(score, 1.0).tilt(reward, REWARD)}

    rows: dict[str, list[dict[str, float]]] = {}

    def add(row: str, found: dict[str, float]) -> None:
        rows.setdefault(row, []).append(found)
        print(row, {name: round(x, 4) for name, x in found.items()}, flush=True)

    down = levels(40.0, 0.02, 40, 7.0, to_zero=True)
    total = PARTICLES * REPLICATES
    add("T = 2, exact | | ", quality(hot.other, hot.truth))
    for seed in range(args.seeds):
        z = sample(score, total, EVENT, down, key=seed, method=DPMSolver(order=2))
        add("T = 2 from noise | | ", quality(np.asarray(z), hot.truth))
    for task, composition in tasks.items():
        truth, other, log_z, _ = truths[task]
        log_z -= {"T = 1": 2.0, "reward": 1.0}[task] * hot.log_z
        add(f"{task}, exact | | ", quality(other, truth))
        for gain in GAINS[task]:
            fk = corrector(composition, jnp.zeros(EVENT), RHO, noise_gain=gain)
            for seed in range(args.seeds):
                plain = np.asarray(unweighted(jax.random.key(seed), fk))
                add(f"{task} | {gain} | no", quality(plain, truth))
            for seed in range(args.seeds):
                found = correct(
                    composition, EVENT, RHO, key=seed, num_particles=PARTICLES, num_chains=REPLICATES,
                    noise_gain=gain, progress=False, warnings="ignore",
                )  # fmt: skip
                z, share = found.x.reshape(-1, *EVENT), np.exp(found.weights).ravel()
                add(
                    f"{task} | {gain} | yes",
                    {
                        **quality(z, truth, share),
                        "ESS": float(found.stats["ess"][:, -1].mean()) / PARTICLES,
                        "starts": float(found.unique_starts.mean()),
                        "log Z": float(found.log_evidence - log_z),
                    },
                )

    names = ("SW", "distances", "energies", "ESS", "starts", "log Z")
    lines = ["| target | gain | weights | " + " | ".join(names) + " |", "|---" * (3 + len(names)) + "|"]
    for row, values in rows.items():
        cells = []
        for name in names:
            x = [v[name] for v in values if name in v]
            spreads = f" +- {np.std(x, ddof=1):.3f}" if len(x) > 1 else ""
            cells.append(f"{np.mean(x):.3f}{spreads}" if x else "")
        lines.append(f"| {row} | " + " | ".join(cells) + " |")
    virials = ", ".join(found.virial for found in (hot, *truths.values()))
    how = (
        f"`{command()}`. {machine()}; {args.seeds} seeds of "
        f"{REPLICATES} x {PARTICLES} particles, {len(RHO) - 1} steps. References in {sampled:.0f} s, virial "
        f"over 6 T: {virials}; network trained in {trained:.0f} s. Load average before: {load:.1f}; after: "
        f"{os.getloadavg()[0]:.1f}."
    )
    report("four particles at another temperature", how, lines, record=args.record)


if __name__ == "__main__":
    main()
