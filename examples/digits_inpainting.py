"""Half of a handwritten digit is hidden: what may it have been?

A small network learns to denoise 8 x 8 digits, half a minute on two cores; that makes it the prior of an
image. The upper half of images that it has never seen, with noise, is the data. `mcx.GuidedDiffusion` draws
from the posterior: whole digits that agree with what is seen, and differ in what is not. No density, and no
training for the task. Digits: see `examples/data/README.md`. Run it with
`python examples/digits_inpainting.py`.
"""

import time
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax

import mcx
import mcx.dist as dist
from mcx.diffusion import Score, edm

DATA = Path(__file__).parent / "data" / "digits.csv.gz"
SPREAD = 0.75  # of the pixels, which lie between -1 and 1
SCHEDULE = edm(0.01, 40.0)
NOISE = 0.1
SEEN = np.arange(8) < 4  # rows


def digits():
    """Images (1797, 8, 8) from -1 to 1, and what they show."""
    table = np.loadtxt(DATA, delimiter=",", dtype=np.float32)
    return table[:, :-1].reshape(-1, 8, 8) / 8 - 1, table[:, -1].astype(int)


# --- the denoiser: the preconditioning and the loss of Karras et al. (2022) --------------------------


def initialize(key, width=256):
    sizes = [64 + 32, width, width, width, 64]
    keys = jax.random.split(key, len(sizes) - 1)
    weights = [
        jax.random.normal(k, (m, n)) * (2 / m) ** 0.5 for k, m, n in zip(keys, sizes, sizes[1:], strict=False)
    ]
    weights[-1] = weights[-1] * 0.01
    return [(w, jnp.zeros(w.shape[1])) for w in weights]


def denoise(params, x, sigma):
    """The mean of the clean image, of one image (8, 8)."""
    total = sigma**2 + SPREAD**2
    angles = jnp.log(sigma) / 4 * jnp.geomspace(1.0, 100.0, 16)
    h = jnp.concatenate([x.ravel() / jnp.sqrt(total), jnp.sin(angles), jnp.cos(angles)])
    for w, b in params[:-1]:
        h = jax.nn.silu(h @ w + b)
    w, b = params[-1]
    return x * SPREAD**2 / total + (h @ w + b).reshape(8, 8) * sigma * SPREAD / jnp.sqrt(total)


def loss(params, x, key):
    key_level, key_noise = jax.random.split(key)
    sigma = jnp.exp(-1.2 + 1.2 * jax.random.normal(key_level, (len(x), 1, 1)))
    noisy = x + sigma * jax.random.normal(key_noise, x.shape)
    error = jax.vmap(partial(denoise, params))(noisy, sigma[:, 0, 0]) - x
    return jnp.mean(error**2 * (sigma**2 + SPREAD**2) / (sigma * SPREAD) ** 2)


@partial(jax.jit, static_argnames=("num_steps", "batch"))
def train(key, images, num_steps=8000, batch=256):
    """Parameters, averaged over steps, and the losses."""
    optimizer = optax.adam(optax.cosine_decay_schedule(2e-3, num_steps))
    key_start, key_run = jax.random.split(key)
    params = initialize(key_start)

    def step(carry, number):
        params, state, mean = carry
        key_pick, key_loss = jax.random.split(jax.random.fold_in(key_run, number))
        x = images[jax.random.randint(key_pick, (batch,), 0, len(images))]
        value, slope = jax.value_and_grad(loss)(params, x, key_loss)
        update, state = optimizer.update(slope, state)
        params = optax.apply_updates(params, update)
        mean = optax.incremental_update(params, mean, 1e-3 + 0.5 / (1 + number))
        return (params, state, mean), value

    (_, _, mean), values = jax.lax.scan(step, (params, optimizer.init(params), params), jnp.arange(num_steps))
    return mean, values


# --- the model ---------------------------------------------------------------------------------------


@mcx.model
def half_seen(params, y):
    score = Score(jax.tree_util.Partial(denoise, params), SCHEDULE, kind="denoised")
    x = mcx.sample("x", mcx.ScorePrior(score, event_shape=(8, 8)))
    mcx.sample("y", dist.Normal(x[SEEN], NOISE).to_event(2), obs=y)


def main(folder: Path = Path("out"), num_steps: int = 8000, num_images: int = 5):
    images, labels = digits()
    order = np.random.default_rng(0).permutation(len(images))
    hidden, shown = order[:300], order[300:]
    begun = time.perf_counter()
    params, losses = jax.block_until_ready(train(jax.random.key(0), images[shown], num_steps))
    print(f"Trained in {time.perf_counter() - begun:.0f} s; loss {np.mean(losses[-500:]):.3f}\n")

    chosen = hidden[:num_images]
    noise = NOISE * np.random.default_rng(1).normal(size=(num_images, 4, 8)).astype(np.float32)
    seen = images[chosen][:, SEEN] + noise
    posts = []
    for number, (y, truth) in enumerate(zip(seen, images[chosen], strict=True)):
        post = mcx.infer(
            half_seen(params, y), mcx.GuidedDiffusion(256), key=number, num_chains=4, warnings="ignore"
        )
        x = post["x"].reshape(-1, 8, 8)
        inside = np.mean(np.abs(truth - x.mean(0))[~SEEN] < 2 * x.std(0)[~SEEN] + 0.05)
        print(
            f"a {labels[chosen[number]]}: log evidence {post.log_evidence:.1f} +- "
            f"{post.log_evidence_se:.1f}, {inside:.0%} of the hidden pixels within two posterior sd"
        )
        posts.append(post)

    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "digits_inpainting.png"
    plot(seen, images[chosen], posts, path)
    print(f"\nSaved the picture: {path}")
    return posts, images[chosen]


def plot(seen, truth, posts, path: Path, num_draws: int = 6) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    titles = ["observed", *["posterior draws"] * num_draws, "mean", "sd", "truth"]
    figure, axes = plt.subplots(len(seen), len(titles), figsize=(len(titles), len(seen) + 0.7), squeeze=False)
    shades = plt.get_cmap("gray_r").with_extremes(bad="lightsteelblue")
    for row, (y, x, post) in enumerate(zip(seen, truth, posts, strict=True)):
        draws = post["x"].reshape(-1, 8, 8)
        blank = np.full((8, 8), np.nan)
        blank[SEEN] = y
        picks = draws[np.linspace(0, len(draws) - 1, num_draws).astype(int)]
        for column, image in enumerate([blank, *picks, draws.mean(0), draws.std(0), x]):
            ends = (0, 1) if titles[column] == "sd" else (-1, 1)
            axes[row, column].imshow(image, cmap=shades, vmin=ends[0], vmax=ends[1])
            axes[row, column].set(xticks=[], yticks=[])
    for column in (0, *range(1 + num_draws, len(titles))):
        axes[0, column].set_title(titles[column], fontsize=8)
    axes[0, 1].set_title(titles[1], fontsize=8, loc="left")
    note = "blue: hidden. White is -1 and black 1; of the sd white is 0 and black 1"
    figure.supxlabel(note, fontsize=8)
    figure.tight_layout()
    figure.savefig(path, dpi=150)
    plt.close(figure)


if __name__ == "__main__":
    main()
