"""Typed errors and warnings.

Every error names the site or argument it is about, says what was expected and what was found, and how
to mend it; the parts are attributes as well, so that programs can act on them.
"""

from __future__ import annotations


class McxError(Exception):
    """Base class of everything mcx raises on purpose.

    Args:
        what: one sentence, what is wrong.
        site: name of the model site concerned, if there is one.
        expected: what was expected.
        found: what was found instead.
        remedy: how to mend it.
    """

    def __init__(
        self,
        what: str,
        *,
        site: str | None = None,
        expected: str | None = None,
        found: str | None = None,
        remedy: str | None = None,
    ) -> None:
        self.what, self.site, self.expected, self.found, self.remedy = what, site, expected, found, remedy
        head = f"site '{site}': {what}" if site is not None else what
        parts = [head]
        for label, text in (("expected", expected), ("found", found), ("to mend it", remedy)):
            if text is not None:
                parts.append(f"  {label}: {text}")
        super().__init__("\n".join(parts))


class ModelError(McxError, ValueError):
    """The model is not one mcx can run as written."""


class DuplicateSiteError(ModelError):
    """Two sites of a model carry the same name."""


class SiteNameError(ModelError):
    """A site has a name that results cannot carry."""


class BroadcastError(ModelError):
    """Observations and distribution broadcast against each other and multiply the likelihood."""


class DataError(ModelError):
    """Data that cannot be scored: NaN, or integers where floats are needed."""


class SupportError(ModelError):
    """Observed values lie outside the support of their distribution."""


class InitializationError(ModelError):
    """No starting point with a finite log density and gradient was found."""


class CapabilityError(ModelError):
    """The method needs something that this model does not offer."""


class PosteriorShapeError(ModelError):
    """Draws do not fit the model they are used with."""


class MethodError(McxError, ValueError):
    """A method was given settings that make no sense."""


class KeyTypeError(McxError, TypeError):
    """The random key is missing or of the wrong kind."""


class NonFiniteError(McxError, ArithmeticError):
    """Draws, densities or weights are not finite.

    In a particle system, :attr:`step` is the step at which that happened; :attr:`result` is what the run gave
    nevertheless, None where there is nothing.
    """

    step: int = -1
    result: object = None


class WeightCollapse(NonFiniteError):
    """All particles have weight zero: no particle explains an observation."""


class DeviceMemoryError(McxError, MemoryError):
    """A device has not enough memory for a run.

    :attr:`result` is what was drawn before, as :func:`mcx.run` returns it.
    """

    result: object = None


class CheckpointError(McxError, ValueError):
    """A checkpoint cannot be written, or not be used."""


class CheckpointCorrupt(CheckpointError):
    """A checkpoint holds something else than what was written to it."""


class CheckpointInUse(CheckpointError):
    """Another run writes to the checkpoint's directory."""


class CheckpointMismatch(CheckpointError):
    """The checkpoint is of another run: another model, method, key, version, or other data."""


class MissingExtraError(McxError, ImportError):
    """A feature needs an optional dependency that is not installed."""


class InferenceWarning(UserWarning):
    """A run finished, but its diagnostics say not to trust it as it is."""


class DiagnosticWarning(McxError, RuntimeError):
    """Raised in place of :class:`InferenceWarning` when ``warnings="raise"``; carries the posterior.

    The finished run is in :attr:`result`: nothing is lost.
    """

    result: object = None


__all__ = [name for name in dir() if name[0].isupper()]
