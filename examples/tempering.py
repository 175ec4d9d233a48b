"""A planet, or its alias? Radial velocities of a star that was observed once a night, on 14 of 40 nights.

Seen once a night, an orbit of 3.7 days looks much like one of 1.37 days. The posterior of the period has a
mode at each; chains of NUTS stay in the mode they find first, and disagree. Tempered SMC gives both modes
their shares, and the evidence: is there a planet at all? Given the period everything is linear and Gaussian,
so that the exact answers are known: the run ends by comparing with them. Simulated data.
"""

from pathlib import Path

import jax.numpy as jnp
import numpy as np

import mcx
import mcx.dist as dist

NOISE = 1.5  # m/s
SHORTEST, LONGEST = 1.05, 20.0  # days


def observations():
    """Nights and velocities: a planet of 3 m/s and 3.7 days."""
    rng = np.random.default_rng(5)
    t = np.sort(rng.choice(40, 14, replace=False)) + rng.normal(0, 0.06, 14)
    return t, 3.0 * np.cos(2 * np.pi * t / 3.7 + 1) + 0.5 + rng.normal(0, NOISE, 14)


@mcx.model
def no_planet(t, v):
    offset = mcx.sample("offset", dist.Normal(0, 10))
    with mcx.plate("night", len(t)):
        mcx.sample("v", dist.Normal(offset, NOISE), obs=v)


@mcx.model
def planet(t, v):
    offset = mcx.sample("offset", dist.Normal(0, 10))
    wave = mcx.sample("wave", dist.Normal(0, 5).expand([2]).to_event(1))
    log_period = mcx.sample("log_period", dist.Uniform(np.log(SHORTEST), np.log(LONGEST)))
    mcx.deterministic("period", jnp.exp(log_period))
    angle = 2 * jnp.pi * t * jnp.exp(-log_period)
    with mcx.plate("night", len(t)):
        mean = offset + wave[0] * jnp.cos(angle) + wave[1] * jnp.sin(angle)
        mcx.sample("v", dist.Normal(mean, NOISE), obs=v)


def exact(t, v):
    """Log evidences without and with a planet, and the probability of a period below two days."""
    log_period = np.linspace(np.log(SHORTEST), np.log(LONGEST), 20_001)

    def log_density(columns, sd):
        cov = (columns * np.square(sd)) @ np.swapaxes(columns, -1, -2) + NOISE**2 * np.eye(len(t))
        square = (v * np.linalg.solve(cov, v[:, None])[..., 0]).sum(-1)
        return -0.5 * (square + np.linalg.slogdet(2 * np.pi * cov)[1])

    found = []
    for part in np.array_split(log_period, 100):
        angle = 2 * np.pi * t * np.exp(-part[:, None])
        columns = np.stack([np.ones_like(angle), np.cos(angle), np.sin(angle)], -1)
        found.append(log_density(columns, [10.0, 5.0, 5.0]))
    log_p = np.concatenate(found)
    p = np.exp(log_p - log_p.max())
    with_planet = np.log(p.mean()) + log_p.max()  # the period's prior is flat on the grid
    return log_density(np.ones((len(t), 1)), [10.0]), with_planet, p[log_period < np.log(2)].sum() / p.sum()


def main(folder: Path = Path("out")):
    t, v = observations()
    posts = {
        name: mcx.infer(model(t, v), mcx.TemperedSMC(), key=0, warnings="ignore")
        for name, model in (("no planet", no_planet), ("planet", planet))
    }
    chains = mcx.infer(planet(t, v), mcx.NUTS(), key=1, num_chains=4, warnings="ignore")

    post = posts["planet"]
    short = (post["period"] < 2).mean(1)
    alone, together, share = exact(t, v)
    print(f"\n{post}\n")
    print("P(period < 2 days)")
    error = short.std(ddof=1) / len(short) ** 0.5
    print(f"  tempered SMC  {short.mean():.3f} +- {error:.3f}, exact {share:.3f}")
    by_chain = ", ".join(f"{x:.2f}" for x in (chains["period"] < 2).mean(1))
    print(f"  NUTS          {by_chain}: one number a chain\n")
    print("Log evidence")
    for name, truth in (("no planet", alone), ("planet", together)):
        found = posts[name]
        print(f"  {name:10s}  {found.log_evidence:.3f} +- {found.log_evidence_se:.3f}, exact {truth:.3f}")
    factor = np.exp(post.log_evidence - posts["no planet"].log_evidence)
    print(f"  a planet is {factor:.1f} times as likely as none, where both were equally likely before\n")

    folder.mkdir(parents=True, exist_ok=True)
    plot(post, chains, folder / "tempering.png")
    print(f"Saved the picture: {folder / 'tempering.png'}")
    return posts, (alone, together, share)


def plot(post, chains, path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 3, figsize=(12, 3.5))
    bins = np.geomspace(SHORTEST, LONGEST, 200)
    axes[0].hist(post["period"].ravel(), bins=bins)
    axes[0].set(title="tempered SMC", xscale="log", xlabel="period (days)")
    axes[1].hist(list(chains["period"]), bins=bins, stacked=True)
    axes[1].set(title="NUTS, a colour a chain", xscale="log", xlabel="period (days)")
    level = post.smc_stats["level"]
    for row in level:
        axes[2].plot(np.arange(1, len(row) + 1), row)
    axes[2].set(title="inverse temperature", yscale="log", xlabel="stage")
    figure.tight_layout()
    figure.savefig(path, dpi=150)


if __name__ == "__main__":
    main()
