"""SMC^2 of the ``smcx`` library, for ``marginal.py``; runs in that library's environment. Prints JSON."""

import json
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import smcx

SIGMA_X, SIGMA_Y = 0.7, 0.5


def main(path, num_params, num_particles, steps, replicates):
    y = jnp.asarray(np.load(path)["y"])

    def log_normal(x, mean, sd):
        return jax.scipy.stats.norm.logpdf(x, mean, sd)

    def one(seed):
        found = smcx.smc2(
            jax.random.key(seed),
            lambda key, n: jax.random.uniform(key, (n, 1), minval=-1.0, maxval=1.0),
            lambda p: jnp.where(jnp.abs(p[0]) < 1, jnp.log(0.5), -jnp.inf),
            lambda key, n, p: jax.random.normal(key, (n, 1)),
            lambda key, x, p: p[0] * x + SIGMA_X * jax.random.normal(key, x.shape),
            lambda y, x, p: log_normal(y[0], x[0], SIGMA_Y),
            y,
            num_params,
            num_particles,
            num_pmmh_steps=steps,
            store_history=False,
        )
        return float(jnp.asarray(found.marginal_loglik))

    seconds, values = [], []
    for seed in range(replicates + 1):
        begun = time.perf_counter()
        values.append(one(seed))
        seconds.append(time.perf_counter() - begun)
    print(json.dumps({"seconds": seconds, "log_z": values[1:], "version": smcx.__version__}))


if __name__ == "__main__":
    main(sys.argv[1], *(int(x) for x in sys.argv[2:]))
