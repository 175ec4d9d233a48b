"""Run an unrolled program under all outcomes of its choices at once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from mcx.ops.random import CHOOSE
from mcx.testing.unroll import Choice, Compute, EnumerationError, Program


class TooManyOutcomes(EnumerationError):
    """There are more outcomes than allowed; ``count`` is how many had been found by then."""

    count: int = 0


class KeyReuse(EnumerationError):
    """Two choices use the same key, so that they are not independent, as enumeration takes them to be."""


def expand(program: Program, limit: int, batch: int, check_keys: bool) -> tuple[list[Any], np.ndarray]:
    """Run a program under every outcome of its choices: outputs with leading axis L, probabilities (L,).

    Raises:
        TooManyOutcomes: beyond ``limit``.
        KeyReuse: if two choices use the same key.
    """
    scripted, steps = program.scripted, program.steps
    last_use = {i: k for k, step in enumerate(steps) for i in step.inputs}
    last_use |= dict.fromkeys(program.outputs, len(steps))
    fixed = [s for s in steps if isinstance(s, Compute) and not scripted.intersection(s.outputs)]
    keyed = [(s, s.keys) for s in steps if isinstance(s, Choice) and s.keys is not None and check_keys]
    # values that depend on no choice are computed once
    wanted = {o for s in fixed for o in s.outputs if o in last_use} | {key for _, key in keyed}
    shared = program.known | jax.jit(_segment(fixed, wanted - program.known.keys()))(program.known)
    _check_distinct([(step, np.asarray(jax.random.key_data(shared[key]))) for step, key in keyed])
    rows: dict[int, Any] = {}
    probabilities = np.ones(1)
    pending: list[Compute] = []
    for k, step in enumerate(steps):
        if isinstance(step, Compute):
            if scripted.intersection(step.outputs):
                pending.append(step)
            continue
        rows |= _advance(pending, last_use, k, shared, rows, len(probabilities), batch)
        rows = {i: v for i, v in rows.items() if last_use.get(i, -1) >= k}
        rows, probabilities = _merge(rows, probabilities)
        pending = []
        # what is the same in all outcomes gets a leading axis of length 1
        inputs = (np.asarray(rows[i] if i in rows else shared[i][None]) for i in step.inputs)
        p = _probabilities(step, *inputs)
        parents, picks, factors = _expand(p, step.repeats, len(probabilities), limit, program, k)
        probabilities = probabilities[parents] * factors
        rows = {i: v[parents] for i, v in rows.items() if last_use.get(i, -1) > k}
        rows[step.outputs[0]] = picks.reshape(len(parents), *step.shape).astype(step.dtype)
    rows |= _advance(pending, last_use, len(steps), shared, rows, len(probabilities), batch)
    rows, probabilities = _merge({i: rows[i] for i in program.outputs if i in rows}, probabilities)
    count = len(probabilities)
    outputs = []
    for i in program.outputs:
        if i in rows:
            outputs.append(rows[i])
        else:
            x = jnp.asarray(shared[i])
            full = jnp.broadcast_to(x, (count, *x.shape))
            outputs.append(full if _is_key(x) else np.asarray(full))
    return outputs, probabilities


def _segment(steps: Sequence[Compute], wanted: set[int]) -> Callable[..., dict[int, Any]]:
    def segment(*known: dict[int, Any]) -> dict[int, Any]:
        values = {i: v for part in known for i, v in part.items()}
        for step in steps:
            outputs = step.run(*(values[i] for i in step.inputs))
            values.update(zip(step.outputs, outputs, strict=True))
        return {i: values[i] for i in wanted}

    return segment


def _advance(
    steps: Sequence[Compute],
    last_use: dict[int, int],
    now: int,
    shared: dict[int, Any],
    rows: dict[int, Any],
    count: int,
    batch: int,
) -> dict[int, Any]:
    """Run deterministic steps for all outcomes so far; returns what is used from step ``now`` on."""
    wanted = {o for s in steps for o in s.outputs if last_use.get(o, -1) >= now}
    if not wanted:
        return {}
    used = {i for s in steps for i in s.inputs}
    common = {i: v for i, v in shared.items() if i in used}
    own = {i: v for i, v in rows.items() if i in used}
    run = jax.jit(jax.vmap(_segment(steps, wanted), in_axes=(None, 0)))
    # few sizes, so that a second enumeration finds its programs in JAX's caches
    size = min(batch, 1 << (count - 1).bit_length())
    parts = []
    for start in range(0, count, size):
        here = np.minimum(np.arange(start, start + size), count - 1)
        found = run(common, {i: v[here] for i, v in own.items()})
        parts.append({i: v if _is_key(v) else np.asarray(v) for i, v in found.items()})
    if len(parts) == 1:
        return {i: v[:count] for i, v in parts[0].items()}
    join: Any = lambda xs: jnp.concatenate(xs) if _is_key(xs[0]) else np.concatenate(xs)  # noqa: E731
    return {i: join([p[i] for p in parts])[:count] for i in wanted}


def _merge(rows: dict[int, Any], probabilities: np.ndarray) -> tuple[dict[int, Any], np.ndarray]:
    """Merge outcomes whose values are the same, bit for bit: they have the same continuations."""
    columns = [np.asarray(jax.random.key_data(v)) if _is_key(v) else v for v in rows.values() if v.size]
    if not columns or len(probabilities) == 1:
        return rows, probabilities
    table = np.concatenate(
        [np.ascontiguousarray(c).reshape(len(c), -1).view(np.uint8) for c in columns], axis=1
    )
    whole = np.ascontiguousarray(table).view(np.dtype((np.void, table.shape[1]))).reshape(-1)
    _, first, where = np.unique(whole, return_index=True, return_inverse=True)
    if len(first) == len(whole):
        return rows, probabilities
    order = np.argsort(first)  # outcomes stay in the order in which they were found
    place = np.empty_like(order)
    place[order] = np.arange(len(order))
    merged = np.bincount(place[where.reshape(-1)], probabilities, len(first))
    return {i: v[first[order]] for i, v in rows.items()}, merged


def _probabilities(step: Choice, log_p: np.ndarray, active: np.ndarray | None = None) -> np.ndarray:
    """Probabilities (rows, draws, n) of each draw's outcomes, in float64."""
    log_p = np.asarray(log_p, np.float64)
    log_p = np.where(np.isnan(log_p), -np.inf, log_p)
    if step.kind == CHOOSE:
        log_p = log_p.reshape(len(log_p), -1, log_p.shape[-1])
        top = log_p.max(-1, keepdims=True)
        # the conventions of mcx.ops.logspace: only infinite weights count if there are any, and if all
        # weights are zero they are equal
        finite = np.isfinite(top)
        shifted = np.where(finite, log_p - np.where(finite, top, 0.0), 0.0)
        w = np.where(finite, np.exp(shifted), log_p == top)
        p = w / w.sum(-1, keepdims=True)
    else:
        yes = np.exp(np.minimum(log_p.reshape(len(log_p), -1), 0.0))
        p = np.stack([1 - yes, yes], -1)
    if active is None:
        return p
    certain = np.zeros(p.shape[-1])
    certain[0] = 1.0
    return np.where(active.reshape(-1, 1, 1), p, certain)


def _expand(
    p: np.ndarray, repeats: int, count: int, limit: int, program: Program, now: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Continue each outcome in every way: parents, the indices drawn (L, draws), and probabilities."""
    parents = np.arange(count)
    factors = np.ones(count)
    picks = np.empty((count, p.shape[1] * repeats), np.int32)
    for draw in range(picks.shape[1]):
        here = p[parents if len(p) > 1 else np.zeros_like(parents), draw // repeats]
        found = int(np.count_nonzero(here))
        if found > limit:
            raise _too_many(found, limit, program, now)
        row, pick = np.nonzero(here)
        parents, factors, picks = parents[row], factors[row] * here[row, pick], picks[row]
        picks[:, draw] = pick
    return parents, picks, factors


def _too_many(found: int, limit: int, program: Program, now: int) -> TooManyOutcomes:
    made = sum(isinstance(s, Choice) for s in program.steps[:now])
    total = sum(isinstance(s, Choice) for s in program.steps)
    error = TooManyOutcomes(
        "too many outcomes",
        expected=f"at most {limit}",
        found=f"at least {found}, at choice {made + 1} of {total}",
        remedy="take fewer particles or steps, return less (only what is returned counts), or allow more",
    )
    error.count = found
    return error


def _check_distinct(keys: list[tuple[Choice, np.ndarray]]) -> None:
    seen: dict[bytes, list[Choice]] = {}
    for choice, data in keys:
        for key in data.reshape(-1, data.shape[-1]):
            others = seen.setdefault(key.tobytes(), [])
            for other in others:
                # two branches of one cond never both run
                if not any(c == d and k != j for c, k in choice.branch for d, j in other.branch):
                    raise KeyReuse(
                        "two choices use the same key and so are not independent",
                        found=f"{other.kind} of shape {other.shape}, {choice.kind} of shape {choice.shape}",
                        remedy="split the key, or set check_keys=False if no outcome makes both",
                    )
            others.append(choice)


def _is_key(x: Array) -> bool:
    return bool(jnp.issubdtype(x.dtype, jax.dtypes.prng_key))
