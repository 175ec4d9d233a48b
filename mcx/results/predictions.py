"""Predictive draws, and the groups of a DataTree that they are stored in."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np

from mcx.errors import MethodError
from mcx.sites import SiteTable


class Predictions(Mapping[str, np.ndarray]):
    """Predictive draws by site name, chain x draw x site shape.

    Attributes:
        kind: "prior" or "posterior".
        sites: the sites of the model they were drawn from.
    """

    def __init__(self, values: dict[str, np.ndarray], kind: str, sites: SiteTable) -> None:
        self._values, self.kind, self.sites = values, kind, sites

    def __getitem__(self, name: str) -> np.ndarray:
        return self._values[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def groups(self, name: str) -> dict[str, dict[str, np.ndarray]]:
        """The draws by DataTree group, when stored as ``name``."""
        observed = {s.name for s in self.sites.of_kind("observed")}
        predicted = {k: v for k, v in self.items() if k in observed}
        rest = {k: v for k, v in self.items() if k not in observed}
        if name == "prior":
            return {"prior": rest, "prior_predictive": predicted}
        if name == "posterior_predictive":
            return {"posterior_predictive": predicted}
        if name == "predictions":
            return {"predictions": {**rest, **predicted}}
        raise MethodError(
            f"unknown group {name!r}", expected="prior, posterior_predictive or predictions", found=name
        )

    def __repr__(self) -> str:
        shapes = ", ".join(f"{k}{v.shape}" for k, v in self.items())
        return f"Predictions({self.kind}; {shapes})"
