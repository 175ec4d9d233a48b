"""Eight schools: does coaching raise test scores, and by how much in each school?

Data: Rubin (1981), Estimation in parallel randomized experiments; as in posteriordb
(eight_schools-eight_schools_noncentered). Run it with `make demo`, or `python examples/eight_schools.py`.
"""

from pathlib import Path

import jax.numpy as jnp

import mcx
import mcx.dist as dist

SCHOOLS = ["A", "B", "C", "D", "E", "F", "G", "H"]
EFFECT = jnp.array([28.0, 8.0, -3.0, 7.0, -1.0, 1.0, 18.0, 12.0])  # estimated effect of coaching, in points
STANDARD_ERROR = jnp.array([15.0, 10.0, 16.0, 11.0, 9.0, 11.0, 10.0, 18.0])


@mcx.model
def eight_schools(sigma, y=None):
    mu = mcx.sample("mu", dist.Normal(0, 5))
    tau = mcx.sample("tau", dist.HalfCauchy(5))
    with mcx.plate("school", len(sigma)):
        z = mcx.sample("z", dist.Normal(0, 1))  # non-centred: the centred form diverges
        theta = mcx.deterministic("theta", mu + tau * z)
        mcx.sample("y", dist.Normal(theta, sigma), obs=y)


def main(folder: Path = Path("out")) -> mcx.Posterior:
    posterior = eight_schools(STANDARD_ERROR, y=EFFECT)
    print("The model's sites\n")
    print(posterior.sites(), "\n")

    post = mcx.infer(posterior, mcx.NUTS(target_accept=0.99), key=0, coords={"school": SCHOOLS})
    print(f"\nCompiled in {post.info.compile_time:.1f} s, ran for {post.info.run_time:.1f} s\n")
    print(post.summary(["mu", "tau", "theta"]))
    print(f"divergent transitions: {int(post.stats['diverging'].sum())}\n")

    folder.mkdir(parents=True, exist_ok=True)
    tree = post.to_datatree(posterior_predictive=mcx.predict(post, posterior, key=1))
    tree.to_netcdf(folder / "eight_schools.nc")
    plot_forest(tree, folder / "eight_schools.png")
    print(f"Saved the run (DataTree):  {folder / 'eight_schools.nc'}")
    print(f"Saved the forest plot:     {folder / 'eight_schools.png'}")
    return post


def plot_forest(tree, path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")  # no display needed
    import arviz as az

    plot = az.plot_forest(tree, var_names=["mu", "theta", "tau"], combined=True)
    plot.savefig(str(path))


if __name__ == "__main__":
    main()
