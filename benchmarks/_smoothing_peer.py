"""The ``particles`` library's smoothers, for ``smoothing.py``; runs in that library's environment.

Prints JSON: rows of task, N, T, seconds and estimates.
"""

import json
import sys
import time

import numpy as np
import particles
from particles import collectors, kalman, mcmc
from particles import state_space_models as ssms


class Model(kalman.LinearGauss):
    """With the sum of x_{t-1} x_t, and the bound that rejection needs."""

    def add_func(self, t, xp, x):
        return xp * x if t > 0 else np.zeros_like(x)

    def upper_bound_log_pt(self, t):
        return -np.log(self.sigmaX) - 0.5 * np.log(2 * np.pi)


def timed(repeats, call):
    seconds, values = [], []
    for _ in range(repeats):
        begun = time.perf_counter()
        value = call()
        seconds.append(time.perf_counter() - begun)
        values.append(float(value))
    return {"seconds": seconds, "values": values}


def main(path, tasks):
    given = np.load(path)
    y = given["y"]
    model = Model(rho=float(given["rho"]), sigmaX=1.0, sigmaY=float(given["sigma_y"]))
    rows = []
    for task, num, times, repeats in tasks:
        fk = ssms.Bootstrap(ssm=model, data=y[:times])

        def paris(fk=fk, num=num):
            system = particles.SMC(fk=fk, N=num, resampling="multinomial", collect=[collectors.Paris()])
            system.run()
            return np.mean(system.summaries.paris[-1])

        def ffbs(fk=fk, num=num):
            system = particles.SMC(fk=fk, N=num, resampling="multinomial", store_history=True)
            system.run()
            x = np.array(system.hist.backward_sampling_mcmc(num, nsteps=2))
            return np.mean(np.sum(x[:-1] * x[1:], 0))

        def sweep(fk=fk, num=num):
            system = mcmc.CSMC(fk=fk, N=num, xstar=np.zeros(len(y)))
            system.run()
            x = np.array(system.hist.backward_sampling_ON2(1)).reshape(len(y), -1)[:, 0]
            return np.sum(x[:-1] * x[1:])

        call = {"PaRIS": paris, "FFBS": ffbs, "conditional SMC": sweep}[task]
        rows.append({"task": task, "num": num, "times": times, **timed(repeats, call)})
    print(json.dumps({"rows": rows, "version": particles.__version__}))


if __name__ == "__main__":
    main(sys.argv[1], json.loads(sys.argv[2]))
