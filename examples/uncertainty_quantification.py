"""How far does a cantilever beam bend, how often too far, and which input is to blame?

Forces, Young's modulus and dimensions of a beam are known up to laws, and the deflection of its end is a
function of them that stands for an expensive one. Four questions, some ten thousand evaluations each:

- mean and standard deviation of the deflection, and the probability that it is above 25 cm, from one sample;
- the mean under other laws: longer beams, and width and thickness that depend on each other;
- Sobol' indices: the share of the variance that each input explains, alone and with the others.

The case is that of Demange-Chryst, Bachoc and Morio (2022). References are by quadrature. Run it with
`python examples/uncertainty_quantification.py`.
"""

import math
from pathlib import Path

import jax.numpy as jnp
import numpy as np

import mcx
import mcx.dist as dist
from mcx.estimators import expectations, sobol_indices

INPUTS = {  # mean and coefficient of variation
    "horizontal force (N)": (556.8, 0.08),
    "vertical force (N)": (453.6, 0.08),
    "Young's modulus (Pa)": (200e9, 0.06),
    "width (m)": (0.062, 0.1),
    "thickness (m)": (0.0987, 0.1),
    "length (m)": (4.29, 0.1),
}
TOO_FAR = 0.25  # m
REFERENCE = {"mean": 0.0438565, "sd": 0.0205722, "too far": 3.902e-5}
FIRST = [0.02355, 0.00030, 0.01636, 0.42808, 0.07294, 0.40103]
TOTAL = [0.02907, 0.00043, 0.01989, 0.47518, 0.08445, 0.44960]


def deflection(f_x, f_y, modulus, width, thickness, length):
    """Of the free end, in m."""
    bending = jnp.hypot(f_x / width**2, f_y / thickness**2)
    return 4 * length**3 / (modulus * width * thickness) * bending


def of_gaussians(z):
    """The deflection where the first three inputs are given by their logarithms."""
    return deflection(*jnp.exp(z[:3]), *z[3:])


def gaussians(mean=None):
    """Means and sds (..., 6) of the logarithms of forces and modulus, and of the dimensions."""
    nominal, variation = np.array(list(INPUTS.values())).T
    mean = nominal if mean is None else mean
    log_sd = np.broadcast_to(np.sqrt(np.log1p(variation[:3] ** 2)), mean[..., :3].shape)
    loc = np.concatenate([np.log(mean[..., :3]) - log_sd**2 / 2, mean[..., 3:]], -1)
    return loc, np.concatenate([log_sd, mean[..., 3:] * variation[3:]], -1)


def main(folder: Path = Path("out")):
    loc, sd = gaussians()
    law = dist.Normal(jnp.asarray(loc), jnp.asarray(sd)).to_event(1)

    def questions(z):
        d = of_gaussians(z)
        return {"mean": d, "square": d**2, "too far": d > TOO_FAR}

    found = expectations(questions, law, method=mcx.AdaptiveImportance(budget=10_000), key=0)
    value, se = found.value, found.se
    spread = math.sqrt(value["square"] - value["mean"] ** 2)
    spread_se = math.hypot(se["square"], 2 * value["mean"] * se["mean"]) / (2 * spread)
    lines = [
        "deflection                          estimate      error  reference",
        f"mean (m)                          {value['mean']:10.6f} {se['mean']:10.1g} "
        f"{REFERENCE['mean']:10.6f}",
        f"standard deviation (m)            {spread:10.6f} {spread_se:10.1g} {REFERENCE['sd']:10.6f}",
        f"P(above {TOO_FAR} m)                   {value['too far']:10.3e} {se['too far']:10.1g} "
        f"{REFERENCE['too far']:10.3e}",
    ]

    # one function under many laws: lengths, and correlations of width and thickness, from one sample
    laws = [(length, rho) for length in (4.0, 4.29, 4.6) for rho in (-0.5, 0.0)]
    means, covariances = np.tile(loc, (len(laws), 1)), np.tile(np.diag(sd**2), (len(laws), 1, 1))
    for i, (length, rho) in enumerate(laws):
        means[i, 5] = length
        covariances[i, 3, 4] = covariances[i, 4, 3] = rho * sd[3] * sd[4]
    perturbed = expectations(
        of_gaussians,
        dist.MultivariateNormal(jnp.asarray(means), jnp.asarray(covariances)),
        method=mcx.AdaptiveImportance(budget=10_000, num_components=1),
        key=1,
    )
    lines += ["", "mean length   correlation of width and thickness   mean deflection      error"]
    for (length, rho), mean, error in zip(laws, perturbed.value, perturbed.se, strict=True):
        lines.append(f"{length:11.2f}   {rho:34.1f}   {mean:15.6f} {error:10.1g}")

    inputs = [dist.LogNormal(loc[i], sd[i]) if i < 3 else dist.Normal(loc[i], sd[i]) for i in range(6)]
    indices = sobol_indices(lambda x: deflection(*x), inputs, budget=16_000, key=2)
    lines += ["", "Sobol' indices            first     error  reference     total     error  reference"]
    for i, name in enumerate(INPUTS):
        columns = [f"{name:21s}"]
        for which, reference in (("first", FIRST), ("total", TOTAL)):
            columns += [f"{indices.value[which][i]:9.4f} {indices.se[which][i]:9.1g} {reference[i]:10.4f}"]
        lines.append(" ".join(columns))
    print("\n".join(lines))
    for warning in (*found.warnings, *perturbed.warnings, *indices.warnings):
        print(f"note: {warning}")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "uncertainty_quantification.txt").write_text("\n".join(lines) + "\n")
    print(f"\nSaved the tables:  {folder / 'uncertainty_quantification.txt'}")


if __name__ == "__main__":
    main()
