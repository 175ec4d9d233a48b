"""PMMH of the ``particles`` library, for ``marginal.py``; runs in that library's environment. Prints JSON."""

import json
import sys
import time

import numpy as np
import particles
from particles import distributions as dists
from particles import mcmc
from particles import state_space_models as ssms

SIGMA_X, SIGMA_Y = 0.7, 0.5


class Model(ssms.StateSpaceModel):
    default_params = {"phi": 0.0}

    def PX0(self):
        return dists.Normal(0.0, 1.0)

    def PX(self, t, xp):
        return dists.Normal(loc=self.phi * xp, scale=SIGMA_X)

    def PY(self, t, xp, x):
        return dists.Normal(loc=x, scale=SIGMA_Y)


def main(path, num_particles, steps):
    y = np.load(path)["y"]
    chain = mcmc.PMMH(
        ssm_cls=Model, prior=dists.StructDist({"phi": dists.Uniform(-1.0, 1.0)}), data=list(y),
        Nx=num_particles, niter=steps, theta0=np.array([(0.5,)], dtype=[("phi", float)]),
    )  # fmt: skip
    begun = time.perf_counter()
    chain.run()
    seconds = time.perf_counter() - begun
    draws = chain.chain.theta["phi"].tolist()
    print(json.dumps({"seconds": seconds, "draws": draws, "version": particles.__version__}))


if __name__ == "__main__":
    np.random.seed(1)  # noqa: NPY002  the library draws from numpy's global state
    main(sys.argv[1], *(int(x) for x in sys.argv[2:]))
