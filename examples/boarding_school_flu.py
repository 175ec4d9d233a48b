"""Influenza in a boarding school, 1978: a stochastic epidemic with counts for states, by particle Gibbs.

Each day some of the susceptible boys are infected and some of the infected recover. States are whole numbers,
so that no gradient can move them: conditional SMC draws the epidemic's path, NUTS the rates given the path.
"""

import csv
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from numpyro.distributions import constraints

import mcx
import mcx.dist as dist

BOYS = 763


class ChainBinomial(dist.Distribution):
    """The day after: susceptible and infected boys, (2,), from those of the day before.

    Args:
        state: susceptible and infected, (..., 2).
        infection: rate at which one infected boy infects the others, a day.
        recovery: rate of recovery, a day.
    """

    arg_constraints = {
        "state": constraints.independent(constraints.nonnegative_integer, 1),
        "infection": constraints.positive,
        "recovery": constraints.positive,
    }
    support = constraints.independent(constraints.nonnegative_integer, 1)

    def __init__(self, state, infection, recovery, *, validate_args=None):
        self.state, self.infection, self.recovery = state, infection, recovery
        super().__init__(batch_shape=jnp.shape(state)[:-1], event_shape=(2,), validate_args=validate_args)

    def laws(self):
        """Of the boys who stay susceptible, and of those who stay infected."""
        susceptible, infected = self.state[..., 0], self.state[..., 1]
        escape = jnp.exp(-self.infection * infected / BOYS)
        return dist.Binomial(susceptible, escape), dist.Binomial(infected, jnp.exp(-self.recovery))

    def sample(self, key, sample_shape=()):
        # JAX's own draws: NumPyro's, vectorised, were seen not to end
        keys, shape = jax.random.split(key), sample_shape + self.batch_shape
        susceptible, ill = (
            jnp.clip(jax.random.binomial(k, law.total_count, law.probs, shape), 0, law.total_count)
            for law, k in zip(self.laws(), keys, strict=True)
        )
        infected = self.state[..., 0] - susceptible + ill
        return jnp.stack([susceptible, infected], -1).astype(jnp.int32)

    def log_prob(self, value):
        susceptible, infected = value[..., 0], value[..., 1]
        stay_susceptible, stay_ill = self.laws()
        ill = infected - (self.state[..., 0] - susceptible)
        possible = (susceptible <= self.state[..., 0]) & (ill >= 0) & (ill <= self.state[..., 1])
        log_p = stay_susceptible.log_prob(jnp.where(possible, susceptible, 0))
        log_p += stay_ill.log_prob(jnp.where(possible, ill, 0))
        return jnp.where(possible, log_p, -jnp.inf)


@mcx.model
def epidemic(in_bed):
    infection = mcx.sample("infection", dist.LogNormal(0.5, 1.0))
    recovery = mcx.sample("recovery", dist.LogNormal(-0.7, 1.0))
    mcx.deterministic("infected by the first", infection / (1 - jnp.exp(-recovery)))
    mcx.markov(
        "boys",
        initial=lambda u: ChainBinomial(jnp.array([BOYS - 1, 1]), infection, recovery),
        transition=lambda x, u: ChainBinomial(x, infection, recovery),
        emission=lambda x, u: dist.Poisson(x[1] + 0.1),
        obs=in_bed,
    )


def load():
    with open(Path(__file__).parent / "data" / "boarding_school_flu.csv") as file:
        rows = list(csv.DictReader(file))
    return [row["date"] for row in rows], np.array([int(row["in_bed"]) for row in rows])


def main(folder: Path = Path("out")):
    dates, in_bed = load()
    method = mcx.ParticleGibbs(states=mcx.ConditionalSMC(100), num_warmup=500, num_samples=4000)
    post = mcx.infer(epidemic(in_bed), method, key=0, coords={"time": dates})
    print(post.summary(["infection", "recovery", "infected by the first"]))
    peak = np.asarray(post["boys"])[..., 1].max(-1)
    print(f"infected at the peak: {peak.mean():.0f} +- {peak.std():.0f}")
    folder.mkdir(parents=True, exist_ok=True)
    plot(dates, in_bed, post, folder / "boarding_school_flu.png")


def plot(dates, in_bed, post, path):
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(11, 4), layout="constrained")
    paths = np.asarray(post["boys"]).reshape(-1, len(dates), 2)
    days = np.arange(1, len(dates) + 1)
    for i, name in enumerate(("susceptible", "infected")):
        low, middle, high = np.quantile(paths[:, :, i], [0.05, 0.5, 0.95], axis=0)
        axes[0].fill_between(days, low, high, alpha=0.3)
        axes[0].plot(days, middle, label=name)
    axes[0].plot(days, in_bed, "k.", label="in bed")
    axes[0].set(xlabel=f"day ({dates[0]} is the first)", ylabel="boys", title="The epidemic, 90 % bands")
    axes[0].legend()
    axes[1].scatter(
        np.ravel(post["infection"]), np.ravel(post["infected by the first"]), s=2, alpha=0.4, rasterized=True
    )
    axes[1].set(xlabel="infections a day and infected boy", ylabel="infected by the first", title="Rates")
    figure.savefig(path, dpi=120)
    print(f"picture: {path}")


if __name__ == "__main__":
    main()
