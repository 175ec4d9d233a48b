"""Arguments that do not exist: what they are called here, for those who know them from elsewhere."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Mapping

from mcx.errors import MethodError

_HERE = {  # what NumPyro, PyMC, BlackJAX and Stan call it
    "chain_method": "devices",
    "chains": "num_chains",
    "cores": "devices",
    "draws": "num_samples",
    "init_params": "init",
    "init_strategy": "init",
    "initial_params": "init",
    "initvals": "init",
    "iter_sampling": "num_samples",
    "iter_warmup": "num_warmup",
    "num_results": "num_samples",
    "prng_key": "key",
    "progress_bar": "progress",
    "progressbar": "progress",
    "random_seed": "key",
    "rng_key": "key",
    "seed": "key",
    "target_accept_prob": "target_accept",
    "target_acceptance_rate": "target_accept",
    "adapt_delta": "target_accept",
    "tune": "num_warmup",
    "warmup": "num_warmup",
}
_NOWHERE = {
    "thin": "all draws are kept: posterior.draws[site][:, ::10] for every tenth",
    "thinning": "all draws are kept: posterior.draws[site][:, ::10] for every tenth",
    "model": "the model goes to the verb: mcx.infer(model(data), method, key=0)",
    "data": "data are the model's arguments: mcx.infer(model(data), method, key=0)",
}


def refuse_unknown(
    owner: str, unknown: Collection[str], known: Collection[str], elsewhere: Mapping[str, str]
) -> None:
    """Raise MethodError on arguments that ``owner`` does not have.

    ``elsewhere`` has remedies by the names of arguments that belong to something else.
    """
    for name in unknown:
        here = _HERE.get(name, name)
        if here in known:
            remedy: str | None = f"it is called {here} here: {owner}({here}=...)"
        elif here in elsewhere:
            remedy = elsewhere[here]
        elif name in _NOWHERE:
            remedy = _NOWHERE[name]
        else:
            close = difflib.get_close_matches(name, known, 1)
            remedy = f"{owner}({close[0]}=...)" if close else None
        raise MethodError(
            f"{owner} has no argument {name}",
            expected="one of " + ", ".join(known) if known else "no arguments",
            remedy=remedy,
        )
