"""The base of all inference methods."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, NoReturn

from mcx.errors import CapabilityError
from mcx.model.bound import BoundModel
from mcx.model.check import refuse_data
from mcx.model.compile import compile_model
from mcx.ops.validation import Settings
from mcx.results.advice import Advice
from mcx.results.diagnose import diagnose
from mcx.results.posterior import Posterior
from mcx.run.driver import Run
from mcx.target import Target
from mcx.types import Key, PyTree

type Coords = Mapping[str, Sequence[object]]
"""Labels of the results' dimensions, as the user gave them."""


class Method(Settings):
    """An inference method: a frozen dataclass of settings that knows how to run itself.

    Most methods derive from one of two subclasses, which run them and assemble the results:
    :class:`~mcx.methods.chain_method.ChainMethod` for Markov chains, and
    :class:`~mcx.methods.replicate_method.ReplicateMethod` for clouds of particles. The rules of the settings
    (:meth:`rules`, :meth:`check`) are checked when an object is made.

    Attributes:
        default_chains: number of chains or replicates if the user gives none.
    """

    default_chains: ClassVar[int] = 4

    def infer(
        self, bound: BoundModel, *, key: Key, num_chains: int, init: PyTree, coords: Coords, **options: Any
    ) -> Posterior:
        """Draw from the posterior. Users call :func:`mcx.infer`, which checks the arguments and the result.

        ``init`` is what the user gave, or None; options are the driver's: progress, checkpoint, devices,
        batch_size.
        """
        raise NotImplementedError

    def program(self, bound: BoundModel, num_chains: int) -> Callable[..., Posterior]:
        """The pure function ``(key, bound) -> Posterior`` behind :meth:`infer`; see :func:`mcx.program`."""
        raise NotImplementedError

    def advice(self, posterior: Posterior) -> list[Advice]:
        """What this method finds wrong with a finished run, worst first.

        What may go wrong in any run (an early stop, draws that are not finite, chains that disagree) is
        diagnosed for all methods alike, see :meth:`diagnose`.
        """
        return []

    def diagnose(self, posterior: Posterior) -> list[Advice]:
        """Everything that is wrong with a finished run of this method, worst first."""
        return diagnose(posterior, self.advice(posterior))


def checked_target(bound: BoundModel) -> Target:
    """The compiled posterior of a model that has a latent site, once its data are checked."""
    target = compile_model(bound)
    refuse_data(target)
    if target.dim == 0:
        raise CapabilityError(
            "the model has no latent site, so there is nothing to infer", remedy="leave out an obs="
        )
    return target


def interrupted(method: str, during: str, result: Run, remedy: str = "") -> NoReturn:
    """Raise because a run, ``error.result``, was interrupted before there were draws."""
    text = f"{method} was interrupted during its {during}; there are no draws yet"
    error = KeyboardInterrupt(text + (f". {remedy}" if remedy else ""))
    error.result = result  # type: ignore[attr-defined]
    raise error
