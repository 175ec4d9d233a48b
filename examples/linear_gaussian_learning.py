"""Learning a linear Gaussian model: score ascent with PPG and with PaRIS, against the exact maximum.

A state of two dimensions turns and shrinks; its matrix A is unknown. The likelihood is known from the Kalman
filter, so that one sees what the estimates' errors are made of.
"""

from pathlib import Path

import jax.numpy as jnp
import numpy as np
from scipy.optimize import minimize

import mcx
import mcx.dist as dist
from mcx.testing import kalman

A = np.array([[0.9, -0.3], [0.2, 0.7]])
STATE_SD, NOISE_SD, TIMES = 0.5, 0.5, 200


@mcx.model
def rotation(y):
    a = mcx.sample("A", dist.Normal(jnp.zeros((2, 2)), 1.0).to_event(2))
    mcx.markov(
        "x",
        initial=lambda u: dist.Normal(jnp.zeros(2), 1.0).to_event(1),
        transition=lambda x, u: dist.Normal(a @ x, STATE_SD).to_event(1),
        emission=lambda x, u: dist.Normal(x, NOISE_SD).to_event(1),
        obs=y,
    )


def simulate():
    rng = np.random.default_rng(3)
    x = np.zeros((TIMES, 2))
    x[0] = rng.normal(size=2)
    for t in range(1, TIMES):
        x[t] = A @ x[t - 1] + STATE_SD * rng.normal(size=2)
    return (x + NOISE_SD * rng.normal(size=x.shape)).astype(np.float32)


def log_likelihood(y, a):
    return kalman(
        y,
        initial_mean=np.zeros(2),
        initial_cov=np.eye(2),
        transition_matrix=a,
        transition_cov=STATE_SD**2 * np.eye(2),
        observation_matrix=np.eye(2),
        observation_cov=NOISE_SD**2 * np.eye(2),
    ).log_evidence


def main(folder: Path = Path("out")):
    y = simulate()
    exact = minimize(lambda a: -log_likelihood(y, a.reshape(2, 2)), A.ravel(), method="BFGS")
    best = exact.x.reshape(2, 2)
    print(f"exact maximum of the likelihood {-exact.fun:.2f} at A =\n{best.round(4)}\n")
    traces = {}
    for name, smoother in {
        "PPG": mcx.PPG(num_particles=50, num_warmup=0, num_samples=2),
        "PaRIS": mcx.PaRIS(num_particles=100),
    }.items():
        method = mcx.ScoreAscent(smoother=smoother, num_updates=300, num_information=20)
        found = mcx.maximize(rotation(y), method=method, key=0)
        a = found.params["A"]
        print(f"\n{name}: {found}")
        print(
            f"log likelihood {log_likelihood(y, a):.2f}; off the maximum by "
            f"{np.abs((a - best) / found.se['A']).max():.2f} standard errors at most\n"
        )
        traces[name] = found.trace["A"]
    folder.mkdir(parents=True, exist_ok=True)
    plot(traces, best, folder / "linear_gaussian_learning.png")


def plot(traces, best, path):
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, len(traces), figsize=(10, 4), sharey=True, layout="constrained")
    for axis, (name, trace) in zip(axes, traces.items(), strict=True):
        axis.plot(trace.reshape(len(trace), -1))
        axis.hlines(best.ravel(), 0, len(trace), colors="k", linestyles="dotted")
        axis.set(title=name, xlabel="step")
    axes[0].set_ylabel("entries of A (dotted: exact maximum)")
    figure.savefig(path, dpi=120)
    plt.close(figure)
    print(f"wrote {path}")


if __name__ == "__main__":
    main()
