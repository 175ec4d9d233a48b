"""Models bound to their data, and the reference answers."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from mcx import BoundModel
from posteriordb import models

DATA = Path(__file__).parent.parent / "data" / "posteriordb"

Draws = Mapping[str, np.ndarray]


def one_based(draws: Draws, *sites: str) -> dict[str, np.ndarray]:
    """Scalars of the given sites under Stan's names, ``theta[1]``; chain x draw."""
    scalars = {}
    for site in sites:
        x = np.asarray(draws[site])
        for index in np.ndindex(*x.shape[2:]):
            label = f"{site}[{','.join(str(i + 1) for i in index)}]" if index else site
            scalars[label] = x[(slice(None), slice(None), *index)]
    return scalars


@dataclass(frozen=True)
class Problem:
    """A posterior with a reference answer.

    Attributes:
        name: of the posterior in posteriordb.
        bind: the bound model, from the data.
        parameters: sites whose scalars the reference names.
        rename: sites under the reference's names, where they are not called as there.
    """

    name: str
    bind: Callable[[dict[str, Any]], BoundModel]
    parameters: tuple[str, ...]
    rename: Callable[[Draws], Draws] = dict

    @cached_property
    def _file(self) -> dict[str, Any]:
        return json.loads((DATA / f"{self.name}.json").read_text())

    @property
    def data(self) -> dict[str, Any]:
        """The data set under the source's names; lists as float64 arrays."""
        return {
            k: np.asarray(v, np.float64) if isinstance(v, list) else v for k, v in self._file["data"].items()
        }

    @property
    def reference(self) -> dict[str, tuple[float, float, float]]:
        """Mean, its Monte Carlo standard error, and standard deviation, by parameter."""
        mean, sd = self._file["reference"]["mean"], self._file["reference"]["sd"]
        rows = zip(mean["names"], mean["mean_value"], mean["mcse_mean"], strict=True)
        return {name: (value, mcse, sd[name]) for name, value, mcse in rows}

    def bound(self) -> BoundModel:
        """The model with its data."""
        return self.bind(self.data)

    def scalars(self, draws: Draws) -> dict[str, np.ndarray]:
        """Draws under the reference's names, chain x draw each."""
        return one_based(self.rename(draws), *self.parameters)


def _rows_apart(draws: Draws) -> Draws:
    """Stan has the rows of the transition matrix as two parameters."""
    return {**draws, "theta1": draws["theta"][:, :, 0], "theta2": draws["theta"][:, :, 1]}


PROBLEMS = {
    p.name: p
    for p in (
        Problem(
            "eight_schools-eight_schools_noncentered",
            lambda d: models.eight_schools(d["sigma"], d["y"]),
            ("theta", "mu", "tau"),
        ),
        Problem("sblrc-blr", lambda d: models.linear_regression(d["X"], d["y"]), ("beta", "sigma")),
        Problem(
            "kidiq-kidscore_interaction",
            lambda d: models.kid_score(d["mom_hs"], d["mom_iq"], d["kid_score"]),
            ("beta", "sigma"),
        ),
        Problem("arK-arK", lambda d: models.autoregression(d["y"], d["K"]), ("alpha", "beta", "sigma")),
        Problem(
            "hmm_example-hmm_example",
            lambda d: models.hidden_markov(d["y"]),
            ("theta1", "theta2", "mu"),
            _rows_apart,
        ),
        Problem(
            "gp_pois_regr-gp_regr",
            lambda d: models.gaussian_process(d["x"], d["y"]),
            ("rho", "alpha", "sigma"),
        ),
        Problem(
            "low_dim_gauss_mix-low_dim_gauss_mix",
            lambda d: models.gaussian_mixture(d["y"]),
            ("mu", "sigma", "theta"),
        ),
        Problem(
            "garch-garch11",
            lambda d: models.garch(d["y"], d["sigma1"]),
            ("mu", "alpha0", "alpha1", "beta1"),
        ),
    )
}
