"""Proposals with parameters, such as flows, fitted to integrands by stochastic gradients."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpyro.distributions as dist
import optax

from mcx.errors import NonFiniteError
from mcx.estimators.evaluation import at_points
from mcx.estimators.importance.integrals import integrals
from mcx.estimators.importance.proposals import Mixture, as_part, log_densities, num_components
from mcx.ops.keys import as_key
from mcx.ops.tracing import refuse_tracing
from mcx.ops.validation import integer, number, one_of, validated
from mcx.types import Array, Float, Key, KeyLike, PyTree, Scalar

_MOST_NORM = 10.0  # of a gradient: the weights of one update may be far larger than those of others


def train_proposal(
    build: Callable[[PyTree], Any],
    params: PyTree,
    function: Callable[[Array], PyTree],
    law: dist.Distribution,
    *,
    loss: str = "kl",
    num_updates: int = 500,
    batch_size: int = 500,
    defensive: float = 0.1,
    optimizer: optax.GradientTransformation | None = None,
    key: KeyLike,
) -> tuple[PyTree, Float[Array, " update"]]:
    """Fit a proposal to the integrands |phi_j| f_j by gradient descent.

    The proposal q is mixed with a share of the laws, h = (1 - a) q + a f, as in
    :class:`~mcx.estimators.AdaptiveImportance`, whose ``proposals=`` the result is made for. Draws of h, with
    their parameters held fixed, estimate the gradient of

    - "kl": the sum over integrands of the Kullback-Leibler divergences from |phi_j| f_j, normalised, to h;
    - "variance": the sum of relative second moments, E_h (phi_j f_j / h)^2 / (E_h |phi_j| f_j / h)^2. It is
      what counts in the end, but noisy as long as h is far off: train with "kl" before.

    Args:
        build: takes parameters to a proposal; see :func:`~mcx.estimators.importance.proposals.as_part`.
        params: to start from, a pytree.
        function: of a point (d,), as for :func:`~mcx.estimators.expectations`.
        law: of event shape (d,), one or a batch of many.
        loss: "kl" or "variance".
        num_updates: of the optimizer.
        batch_size: evaluations of the function in each update.
        defensive: a, the laws' share.
        optimizer: of optax; by default Adam with a step of 0.01 that falls to zero, on gradients of a norm of
            at most 10.
        key: a typed JAX key or an int.

    Returns:
        The parameters, and the losses of the updates (num_updates,), "kl" up to a constant. Costs num_updates
        batch_size evaluations, and a program of its own for each call.

    Raises:
        MethodError: for settings out of range, or within functions that JAX traces.
        NonFiniteError: if a loss is not finite.

    Sources: Rubinstein and Kroese (2004) for cross-entropy; Douc, Guillin, Marin and Robert (2007) for both
    criteria of mixtures; Müller, McWilliams, Rousselle, Gross and Novák (2019) for flows by gradients.
    """
    refuse_tracing("estimators.train_proposal", "call it outside of jit, vmap and grad", law, params, key)
    validate = partial(validated, "train_proposal")
    loss = validate("loss", loss, one_of("variance", "kl"))
    num_updates = validate("num_updates", num_updates, integer(1))
    batch_size = validate("batch_size", batch_size, integer(2))
    defensive = validate("defensive", defensive, number(above=0, below=1))
    problem = integrals(function, law)
    laws = problem.num_laws
    descent = optimizer
    if descent is None:
        adam = optax.adam(optax.cosine_decay_schedule(0.01, num_updates))
        descent = optax.chain(optax.clip_by_global_norm(_MOST_NORM), adam)

    def mixture(params: PyTree) -> Mixture:
        part = as_part(build(params))
        count = num_components(part)
        shares = [jnp.full(count, (1 - defensive) / count), jnp.full(laws, defensive / laws)]
        return Mixture((part, law), jnp.log(jnp.concatenate(shares)))

    def step(carry: PyTree, key: Key) -> tuple[PyTree, Scalar]:
        params, state = carry
        x = jax.lax.stop_gradient(mixture(params).sample(key, batch_size))
        log_f = log_densities(law, x)
        leaves = jax.tree_util.tree_leaves(at_points(problem.function.function)(x))
        values = jnp.concatenate([leaf.reshape(batch_size, -1) for leaf in leaves], 1).astype(x.dtype)
        log_y = jnp.where(log_f > -jnp.inf, jnp.log(jnp.abs(values)) + log_f, -jnp.inf)  # (n, J)

        def criterion(params: PyTree) -> tuple[Scalar, Scalar]:
            log_h = mixture(params).log_prob(x)
            held = jax.lax.stop_gradient(log_h)
            log_w = log_y - held[:, None]
            seen = jnp.any(log_w > -jnp.inf, 0)  # nothing is known of the others
            share = jnp.where(seen, jax.nn.softmax(jnp.where(seen, log_w, 0.0), 0), 0.0)
            if loss == "kl":
                value = -jnp.sum(share.sum(1) * log_h)
                return value, value
            squares = batch_size * jnp.sum(share**2, 1)
            return -jnp.sum(squares * log_h), jnp.sum(squares)

        (_, value), slope = jax.value_and_grad(criterion, has_aux=True)(params)
        update, state = descent.update(slope, state, params)
        return (optax.apply_updates(params, update), state), value

    @jax.jit
    def trained(params: PyTree, keys: Key) -> tuple[PyTree, Array]:
        (params, _), losses = jax.lax.scan(step, (params, descent.init(params)), keys)
        return params, losses

    found, losses = trained(params, jax.random.split(as_key(key), num_updates))
    if not bool(jnp.isfinite(losses).all()):
        raise NonFiniteError(
            "training a proposal gave a loss that is not finite",
            found=f"{int((~jnp.isfinite(losses)).sum())} of {num_updates} updates",
            remedy="take smaller steps, optimizer=optax.adam(1e-3), a larger batch_size= or loss='kl'",
        )
    return found, losses
