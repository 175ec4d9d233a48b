"""Optimal weighted least squares: fit an expensive function from few evaluations, and integrate it.

A function f is approximated in the span of m functions phi_i, orthonormal under a reference measure mu, from
its values at random points. Points drawn from mu would need far too many; the right density is k_m / m, with
k_m = sum phi_i^2 the inverse Christoffel function, and weights m / k_m. Points of a projection determinantal
process have that marginal density and repel each other as well: m of them are enough to interpolate stably,
and a few times m are as good as many times m independent ones.

    >>> import jax, jax.numpy as jnp
    >>> from mcx.estimators.least_squares import design, fit, integrate, legendre
    >>> basis = legendre(degree=6, dim=2)  # 28 polynomials, uniform law on [-1, 1]^2
    >>> f = lambda x: jnp.exp(x[0] * x[1])
    >>> plan = design(basis, 56, scheme="dpp", key=jax.random.key(0))
    >>> surrogate = fit(plan, jax.vmap(f)(plan.points))
    >>> surrogate(jnp.array([0.3, -0.5]))  # about exp(-0.15)
    >>> surrogate.integral  # its exact mean: with it, a control variate for f
    >>> integrate(f, basis, 56, key=1)  # an Estimate: unbiased, with a standard error

What is unbiased, for any f with a second moment (means of coefficients are the inner products <f, phi_i>,
and integrals of fits have mean int f d mu):

* a fit to ``scheme="volume"``, any n >= m, and to ``scheme="dpp"`` with n = m;
* the average of several such fits, so :func:`integrate` with these schemes;
* ``mean(weights * f)`` for every scheme, as the points' marginal density is k_m / m;
* and, given a fit, ``surrogate.integral`` plus the mean of f - surrogate over fresh draws of mu.

A fit to ``"iid"`` points, or to several DPPs at once, is biased. Errors in L2, relative to that of the best
approximation in the span, are smallest for several DPPs.

The measure: :func:`legendre` and :func:`hermite` are sampled exactly, in any number of variables. The
functions of :func:`on_grid` live on a grid of candidates; see there what that means for integrals.
"""

from mcx.estimators.least_squares.basis import Basis as Basis
from mcx.estimators.least_squares.basis import christoffel as christoffel
from mcx.estimators.least_squares.designs import Design as Design
from mcx.estimators.least_squares.designs import design as design
from mcx.estimators.least_squares.dpp import dpp_by_rejection as dpp_by_rejection
from mcx.estimators.least_squares.dpp import dpp_on_grid as dpp_on_grid
from mcx.estimators.least_squares.fit import LeastSquaresFit as LeastSquaresFit
from mcx.estimators.least_squares.fit import fit as fit
from mcx.estimators.least_squares.grid import GridBasis as GridBasis
from mcx.estimators.least_squares.grid import on_grid as on_grid
from mcx.estimators.least_squares.polynomials import Polynomials as Polynomials
from mcx.estimators.least_squares.polynomials import hermite as hermite
from mcx.estimators.least_squares.polynomials import legendre as legendre
from mcx.estimators.least_squares.quadrature import integrate as integrate
