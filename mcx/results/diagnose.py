"""What to worry about after a run, said once and with advice."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from mcx.errors import DiagnosticWarning, InferenceWarning
from mcx.model.compile import model_sites
from mcx.results import agreement
from mcx.results.advice import Advice
from mcx.results.posterior import Posterior
from mcx.results.precision import precision_advice
from mcx.results.summary import effective_sizes, scalars

_MAX_SCALARS = 500
_R_HAT = 1.01  # Vehtari et al. (2021), Bayesian Analysis 16(2), section 4
_ESS_PER_CHAIN = 100
_ESS_CHAINS = 4  # that many chains are asked for, if there are more than enough
_FALSE_ALARMS = 1e-4  # a run of many chains that agree is called in question that often


def diagnose(posterior: Posterior, advice: Sequence[Advice] = ()) -> list[Advice]:
    """Findings about a finished run, worst first, those of the method itself included."""
    found: list[Advice] = []
    info = posterior.info
    if not info.complete:
        found.append(Advice("MCX-W001", f"stopped early: {posterior.num_draws} draws a chain were kept"))
    if info.num_nonfinite:
        text = f"{info.num_nonfinite} draws hold a NaN or an infinity: look for log(0), 0/0 or overflow in "
        text += "deterministic sites and in the likelihood (bound.check() helps)"
        found.append(Advice("MCX-W002", text))
    if held := [site.name for site in model_sites(posterior.bound).of_kind("param")]:
        text = f"parameters held at their initial values: {', '.join(held)}. No sampler fits numpyro.param; "
        found.append(Advice("MCX-W017", text + "give them priors (handlers.lift, random_flax_module)"))
    convergence = list(_convergence(posterior))
    rounded = precision_advice(posterior, suspicious=bool(found or advice or convergence))
    return [*found, *rounded, *advice, *convergence]


def _convergence(posterior: Posterior) -> Iterator[Advice]:
    from arviz_stats.base import array_stats

    if posterior.num_draws < 4:
        return
    sites = model_sites(posterior.bound)
    latent = [s.name for s in sites.of_kind("latent") if s.name in posterior.draws]
    rows = scalars(posterior.draws, sites, posterior.info.coords, latent)
    # observed members of a site that is missing in part stand still
    moving = (row for row in rows if not (sites[row.site].imputed and np.ptp(row.values) == 0))
    checked = [pair for row in moving for pair in row.smooth() if np.isfinite(pair[1]).all()]
    if len(checked) > _MAX_SCALARS:  # spread over all of them: ESS of thousands takes minutes
        picks = np.linspace(0, len(checked) - 1, _MAX_SCALARS).astype(int)
        checked = [checked[i] for i in picks]
    many = posterior.num_chains >= agreement.MANY and posterior.num_draws >= 8
    apart: dict[str, float] = {}
    ess: dict[str, float] = {}
    for name, x in checked:
        if np.ptp(x, axis=1).min() == 0:
            apart[name], ess[name] = np.inf, 0.0  # a chain that never moved
            continue
        ess[name] = min(effective_sizes(x))
        if many:
            spread = agreement.spread_between(x)
            if spread.disagree(_R_HAT, _FALSE_ALARMS / len(checked)):
                apart[name] = spread.r_hat
        elif posterior.num_chains > 1:
            r_hat = float(array_stats.rhat(x))
            if r_hat > _R_HAT:
                apart[name] = r_hat
    if apart:
        where = _elsewhere(posterior, max(apart, key=lambda k: apart[k]), dict(checked)) if many else ""
        cloud = posterior.info.cloud
        who, more = ("replicates", "Take more particles") if cloud else ("chains", "Run longer")
        yield Advice(
            "MCX-W005",
            f"{who} disagree: r_hat > {_R_HAT} for {_worst(apart, max, '{:.3f}')}{where}. {more}; "
            "if it stays, look for several modes or a stuck chain in az.plot_rank",
        )
    # 100 a chain are for the diagnostics; with many chains those have enough to go by
    least = _ESS_PER_CHAIN * (_ESS_CHAINS if many else posterior.num_chains)
    poor = {k: v for k, v in ess.items() if v < least}
    if poor:
        yield Advice(
            "MCX-W006",
            f"effective sample size below {least} for {_worst(poor, min, '{:.0f}')}: standard errors are "
            "unreliable. Take more samples, or a method that mixes better",
        )


def _elsewhere(posterior: Posterior, name: str, values: dict[str, np.ndarray]) -> str:
    """Which chains sit elsewhere than the others, as far as the scalar ``name`` tells."""
    x = values[name]
    still = np.flatnonzero(np.ptp(x, axis=1) == 0)
    if still.size:
        return f"; chains that never moved: {_numbers(still)}"
    lp = posterior.stats.get("lp")
    found = agreement.groups(x, None if lp is None else np.asarray(lp, float))
    if found is None:
        return ""
    text = (
        f"; {found.apart.size} of {len(x)} chains ({_numbers(found.apart)}) sit elsewhere, {name} being "
        f"{found.mean:.3g} there and {found.rest:.3g} in the others"
    )
    if found.log_density is None or not np.isfinite(found.log_density):
        return text
    side = "lower" if found.log_density < 0 else "higher"
    return f"{text}, log density {abs(found.log_density):.3g} {side}"


def _numbers(chains: np.ndarray) -> str:
    shown = ", ".join(str(i) for i in chains[:8])
    return shown + (", ..." if len(chains) > 8 else "")


def _worst(values: dict[str, float], pick: object, form: str) -> str:
    ordered = sorted(values, key=lambda k: values[k], reverse=pick is max)
    shown = ", ".join(f"{k} ({form.format(values[k])})" for k in ordered[:3])
    return shown + (f" and {len(ordered) - 3} more" if len(ordered) > 3 else "")


def report_advice(posterior: Posterior, mode: str, found_in: Callable[[Posterior], list[Advice]]) -> None:
    """Say what a method finds in one block: "warn", "raise" a DiagnosticWarning (for CI), or "ignore" it."""
    if mode == "ignore":
        return
    found = found_in(posterior)
    if not found:
        return
    block = "\n".join(f"  {a.code}  {a.text}" for a in found)
    if mode == "raise":
        error = DiagnosticWarning(f"{posterior.info.method} finished, but:\n{block}")
        error.result = posterior
        raise error
    warnings.warn(f"{posterior.info.method} finished, but:\n{block}", InferenceWarning, stacklevel=3)
