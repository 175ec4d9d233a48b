"""What to worry about after a run, said once and with advice."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from mcx.errors import DiagnosticWarning, InferenceWarning, MethodError
from mcx.model.compile import model_sites
from mcx.results import agreement
from mcx.results.advice import Advice
from mcx.results.diagnose_stages import diagnose_stages
from mcx.results.summary import effective_sizes, scalars

if TYPE_CHECKING:
    from mcx.results.posterior import Posterior

__all__ = ["Advice", "check_mode", "diagnose", "report_advice"]

_MAX_SCALARS = 500
_R_HAT = 1.01  # Vehtari et al. (2021), Bayesian Analysis 16(2), section 4
_ESS_PER_CHAIN = 100
_ESS_CHAINS = 4  # that many chains are asked for, if there are more than enough
_FALSE_ALARMS = 1e-4  # a run of many chains that agree is called in question that often
_BFMI = 0.3
_UPDATE_RATE = 0.1  # a draw in ten or more sweeps is new
_EVIDENCE_SD = 1.8  # from here on more particles pay whatever they cost: Sherlock et al. (2015)


def diagnose(posterior: Posterior) -> list[Advice]:
    """Findings about a finished run, worst first."""
    found: list[Advice] = []
    info, stats = posterior.info, posterior.stats
    if not info.complete:
        found.append(Advice("MCX-W001", f"stopped early: {posterior.num_draws} draws a chain were kept"))
    if info.num_nonfinite:
        found.append(
            Advice(
                "MCX-W002",
                f"{info.num_nonfinite} draws hold a NaN or an infinity: look for log(0), 0/0 or overflow in "
                "deterministic sites and in the likelihood (bound.check() helps)",
            )
        )
    divergent = int(np.sum(stats["diverging"])) if "diverging" in stats else 0
    if divergent:
        share = divergent / max(1, posterior.num_chains * posterior.num_draws)
        aimed = float(info.settings.get("target_accept", 0.8))
        higher = 0.95 if aimed < 0.95 else 1 - (1 - aimed) / 4
        found.append(
            Advice(
                "MCX-W003",
                f"{divergent} divergent transitions ({share:.2%}): parts of the posterior may be missed. "
                f"Raise target_accept to {higher:.3g}, or reparametrise (non-centred scales, tighter priors)",
            )
        )
    if "reached_max_treedepth" in stats:
        deep = int(np.sum(stats["reached_max_treedepth"]))
        if deep:
            found.append(
                Advice(
                    "MCX-W004",
                    f"{deep} transitions hit the maximum tree depth: correct but slow. Rescale parameters, "
                    "use dense_mass=True, or raise max_tree_depth",
                )
            )
    noise = _noisy_evidence(posterior)
    chains = _paths(posterior) + _convergence(posterior) + _energy(posterior)
    return found + noise + diagnose_stages(posterior) + chains


def _noisy_evidence(posterior: Posterior) -> list[Advice]:
    """Likelihoods estimated with so much noise that a chain stays where they came out too large."""
    sd = float(posterior.info.settings.get("log_evidence_sd", 0.0))
    if sd <= _EVIDENCE_SD:
        return []
    number = int(posterior.info.settings["num_particles"])
    more = f"about {number * (sd / 1.2) ** 2:.2g}" if np.isfinite(sd) else "more"
    return [
        Advice(
            "MCX-W009",
            f"the log evidence is estimated with a standard deviation of {sd:.2g} near the posterior mean; "
            f"beyond {_EVIDENCE_SD} moves get stuck where it came out too large. Take {more} particles (now "
            f"{number}), a proposal for mcx.markov that looks at the observation, or mcx.ParticleGibbs()",
        )
    ]


def _paths(posterior: Posterior) -> list[Advice]:
    """Paths that conditional SMC hardly ever renews somewhere, as a rule at early times."""
    found = []
    for name, by_time in posterior.smc_stats.items():
        block, _, statistic = name.rpartition(".")
        if statistic != "update_rate":
            continue
        rates = np.mean(np.asarray(by_time), 0)
        slow = rates < _UPDATE_RATE
        if not slow.any():
            continue
        states = posterior.info.settings["states"]
        method = states[block] if isinstance(states, Mapping) else states
        if "guidance" in posterior.info.settings:
            found.append(_slow_diffusion(block, rates, method.num_particles))
            continue
        remedy = (
            "more particles" if method.sampling == "backward" else 'sampling="backward" or more particles'
        )
        found.append(
            Advice(
                "MCX-W008",
                f"the path of '{block}' hardly moves at {int(slow.sum())} of {len(rates)} times: it is "
                f"renewed at time {int(rates.argmin())} in {rates.min():.1%} of the sweeps. Use {remedy} in "
                f"ConditionalSMC (now {method.num_particles}, sampling={method.sampling!r}), or give "
                "mcx.markov a proposal that looks at the observation",
            )
        )
    return found


def _slow_diffusion(site: str, rates: np.ndarray, number: int) -> Advice:
    return Advice(
        "MCX-W008",
        f"'{site}' hardly moves at {int((rates < _UPDATE_RATE).sum())} of {len(rates)} levels of noise: its "
        f"path is renewed in {rates.min():.1%} of the sweeps at one. Take more particles (now {number}), or "
        "more steps",
    )


def _convergence(posterior: Posterior) -> list[Advice]:
    from arviz_stats.base import array_stats

    if posterior.num_draws < 4:
        return []
    sites = model_sites(posterior.bound)
    latent = [s.name for s in sites.of_kind("latent") if s.name in posterior.draws]
    rows = scalars(posterior.draws, sites, posterior.info.coords, latent)
    checked = [pair for pair in rows if np.isfinite(pair[1]).all()]
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
    found = []
    if apart:
        where = _elsewhere(posterior, max(apart, key=lambda k: apart[k]), dict(checked)) if many else ""
        cloud = posterior.info.cloud
        who, more = ("replicates", "Take more particles") if cloud else ("chains", "Run longer")
        found.append(
            Advice(
                "MCX-W005",
                f"{who} disagree: r_hat > {_R_HAT} for {_worst(apart, max, '{:.3f}')}{where}. {more}; "
                "if it stays, look for several modes or a stuck chain in az.plot_rank",
            )
        )
    # 100 a chain are for the diagnostics; with many chains those have enough to go by
    least = _ESS_PER_CHAIN * (_ESS_CHAINS if many else posterior.num_chains)
    poor = {k: v for k, v in ess.items() if v < least}
    if poor:
        found.append(
            Advice(
                "MCX-W006",
                f"effective sample size below {least} for {_worst(poor, min, '{:.0f}')}: standard errors are "
                "unreliable. Take more samples, or a method that mixes better",
            )
        )
    return found


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
    return (
        text + f", log density {abs(found.log_density):.3g} {'lower' if found.log_density < 0 else 'higher'}"
    )


def _numbers(chains: np.ndarray) -> str:
    shown = ", ".join(str(i) for i in chains[:8])
    return shown + (", ..." if len(chains) > 8 else "")


def _worst(values: dict[str, float], pick: object, form: str) -> str:
    ordered = sorted(values, key=lambda k: values[k], reverse=pick is max)
    shown = ", ".join(f"{k} ({form.format(values[k])})" for k in ordered[:3])
    return shown + (f" and {len(ordered) - 3} more" if len(ordered) > 3 else "")


def _energy(posterior: Posterior) -> list[Advice]:
    from arviz_stats.base import array_stats

    if "energy" not in posterior.stats or posterior.num_draws < 4:
        return []
    bfmi = np.asarray(array_stats.bfmi(np.asarray(posterior.stats["energy"], float)))
    low = int(np.sum(bfmi < _BFMI))
    if not low:
        return []
    return [
        Advice(
            "MCX-W007",
            f"energy varies too little between draws in {low} chains (E-BFMI {np.min(bfmi):.2f} < {_BFMI}): "
            "heavy tails are explored slowly. Reparametrise",
        )
    ]


def check_mode(mode: str) -> None:
    """Raise on an unknown ``warnings=`` mode, before anything runs."""
    if mode not in ("warn", "raise", "ignore"):
        raise MethodError("unknown warnings mode", expected='"warn", "raise" or "ignore"', found=repr(mode))


def report_advice(posterior: Posterior, mode: str) -> None:
    """Say what :func:`diagnose` finds, in one block.

    Args:
        posterior: the finished run.
        mode: "warn", "raise" (for CI) or "ignore".

    Raises:
        DiagnosticWarning: with the posterior attached, if ``mode`` is "raise" and there is a finding.
    """
    if mode == "ignore":
        return
    found = diagnose(posterior)
    if not found:
        return
    block = "\n".join(f"  {a.code}  {a.text}" for a in found)
    if mode == "raise":
        error = DiagnosticWarning(f"{posterior.info.method} finished, but:\n{block}")
        error.posterior = posterior
        raise error
    warnings.warn(f"{posterior.info.method} finished, but:\n{block}", InferenceWarning, stacklevel=3)
