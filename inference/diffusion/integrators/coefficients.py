"""Coefficients of steps, in float64 on the host: integrals of interpolating polynomials.

Gauss-Legendre quadrature of Lagrange polynomials needs no linear system, and nothing cancels in short steps.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import numpy as np

from mcx.inference.diffusion.models.arguments import Level

_NODES, _WEIGHTS = np.polynomial.legendre.leggauss(64)
_NODES, _WEIGHTS = 0.5 * (_NODES + 1), 0.5 * _WEIGHTS  # on (0, 1)


def exponential_weights(nodes: np.ndarray, start: float, end: float) -> np.ndarray:
    """Weights of D at nodes in ``exp(-end) * integral of exp(lambda) D``, from ``start`` to ``end``."""
    h = end - start
    theta = (np.asarray(nodes, float) - start) / h
    if len(theta) == 1:
        return np.array([-np.expm1(-h)])
    return _lagrange(theta, _NODES) @ (_WEIGHTS * h * np.exp(-h * (1 - _NODES)))


def polynomial_weights(
    nodes: np.ndarray, start: float, end: float, variable: Callable[..., Level] | None = None
) -> np.ndarray:
    """Weights of values at nodes in the integral over rho from ``start`` to ``end``, which may be 0.

    The interpolating polynomial is one in ``variable(rho)``, rho itself by default.
    """
    if variable is None or end == 0:
        rho = start + (end - start) * _NODES
        weights = (end - start) * _WEIGHTS
    else:  # nodes are spread in log rho, as the variable may be singular at 0
        span = np.log(end / start)
        rho = start * np.exp(span * _NODES)
        weights = span * rho * _WEIGHTS
    if variable is None:
        return _lagrange(np.asarray(nodes, float) / start, rho / start) @ weights
    return _lagrange(on_host(variable, np.asarray(nodes, float)), on_host(variable, rho)) @ weights


def on_host(fn: Callable[..., Level], x: np.ndarray) -> np.ndarray:
    """Evaluate a function of JAX operations in float64 and immediately, even while a program is traced."""
    with jax.ensure_compile_time_eval(), jax.enable_x64(True):
        return np.asarray(fn(x), float)


def _lagrange(nodes: np.ndarray, at: np.ndarray) -> np.ndarray:
    """The Lagrange polynomials of the nodes at points, (p, n)."""
    rows = []
    for j, node in enumerate(nodes):
        others = np.delete(nodes, j)
        rows.append(np.prod((at[:, None] - others) / (node - others), 1))
    return np.stack(rows)
