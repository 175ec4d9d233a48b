"""A chaotic recurrent neural network, observed with heavy-tailed noise: its weights by score ascent.

The state relaxes towards what its neurons tell each other, ``x' = x + dt / tau (gain W tanh(x) - x)`` with
noise, and is seen with errors of a Student t with 2 degrees of freedom: a test model of the particle
smoothing literature, with a network of our own.
"""

from pathlib import Path

import jax.numpy as jnp
import numpy as np

import mcx
import mcx.dist as dist

SIZE, TIMES = 3, 400
RATE, GAIN = 0.04, 2.5  # dt / tau
STATE_SD, NOISE_SD = 0.1, 0.1


def drift(weights, x):
    return x + RATE * (GAIN * weights @ jnp.tanh(x) - x)


@mcx.model
def network(y):
    weights = mcx.sample("W", dist.Normal(jnp.zeros((SIZE, SIZE)), 1.0).to_event(2))
    mcx.markov(
        "x",
        initial=lambda u: dist.Normal(jnp.zeros(SIZE), 1.0).to_event(1),
        transition=lambda x, u: dist.Normal(drift(weights, x), STATE_SD).to_event(1),
        emission=lambda x, u: dist.StudentT(2.0, x, NOISE_SD).to_event(1),
        obs=y,
    )


def simulate():
    rng = np.random.default_rng(1)
    weights = rng.normal(size=(SIZE, SIZE))
    x = np.zeros((TIMES, SIZE))
    x[0] = rng.normal(size=SIZE)
    for t in range(1, TIMES):
        x[t] = drift(weights, x[t - 1]) + STATE_SD * rng.normal(size=SIZE)
    y = x + NOISE_SD * rng.standard_t(2.0, size=x.shape)
    return weights, x, y.astype(np.float32)


def main(folder: Path = Path("out")):
    weights, x, y = simulate()
    bound = network(y)
    method = mcx.ScoreAscent(
        smoother=mcx.PPG(num_particles=64, num_warmup=0, num_samples=2), num_updates=200, num_information=10
    )
    found = mcx.maximize(bound, method=method, key=0)
    print(f"\n{found}\n")
    z = (found.params["W"] - weights) / found.se["W"]
    print(
        f"true weights, in standard errors from the estimates: root mean square {np.sqrt(np.mean(z**2)):.2f}"
    )
    for name, at in (("estimated", found.params["W"]), ("true", weights)):
        filtered = mcx.filter(bound, params={"W": at}, num_particles=2000, key=1, progress=False)
        value = f"{filtered.log_evidence:.1f} +- {filtered.log_evidence_se:.1f}"
        print(f"log likelihood at the {name} weights: {value}")
    means = mcx.smooth(
        bound,
        mcx.functionals.means(),
        params={"W": found.params["W"]},
        method=mcx.FFBS(),
        key=2,
        progress=False,
    )
    error = np.sqrt(np.mean((means.value - x) ** 2))
    print(f"smoothed states are off by {error:.3f} (observations by {np.sqrt(np.mean((y - x) ** 2)):.3f})")
    folder.mkdir(parents=True, exist_ok=True)
    plot(x, y, means.value, folder / "chaotic_rnn.png")


def plot(x, y, smoothed, path):
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(SIZE, 1, figsize=(9, 6), sharex=True, layout="constrained")
    for i, axis in enumerate(axes):
        axis.plot(y[:, i], ".", ms=2, color="0.6", label="observed")
        axis.plot(x[:, i], color="k", lw=1, label="true")
        axis.plot(smoothed[:, i], color="C1", lw=1, label="smoothed")
        axis.set(ylim=(x[:, i].min() - 0.5, x[:, i].max() + 0.5), ylabel=f"neuron {i}")
    axes[0].legend(ncols=3, fontsize="small")
    axes[-1].set_xlabel("time")
    figure.savefig(path, dpi=120)
    plt.close(figure)
    print(f"wrote {path}")


if __name__ == "__main__":
    main()
