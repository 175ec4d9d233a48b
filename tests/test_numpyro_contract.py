"""What mcx takes for granted about NumPyro's private parts.

mcx/model/capture.py is the one file that touches them. When a release of NumPyro changes something there,
these tests say which assumption broke; they run on the lowest and on the newest supported release.
"""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro import handlers, primitives
from numpyro.contrib.control_flow import cond, scan
from numpyro.distributions.distribution import Unit
from numpyro.infer import util as infer_util
from numpyro.ops.provenance import eval_provenance
from numpyro.ops.pytree import PytreeTrace


class Spy(primitives.Messenger):
    """Keep the messages that pass, as they are on the way in and on the way out."""

    def __init__(self):
        super().__init__()
        self.entering, self.leaving = [], []

    def process_message(self, msg):
        self.entering.append({**msg, "kwargs": dict(msg.get("kwargs", {}))})

    def postprocess_message(self, msg):
        self.leaving.append(dict(msg))


def spy_on(program):
    spy = Spy()
    with spy, handlers.seed(rng_seed=0):
        program()
    return spy


def message(program, type="sample"):
    (found,) = [m for m in spy_on(program).leaving if m["type"] == type]
    return found


def test_the_stack_of_active_handlers():
    assert primitives._PYRO_STACK == []
    with handlers.trace() as _, handlers.seed(rng_seed=0):
        assert len(primitives._PYRO_STACK) == 2
    assert primitives._PYRO_STACK == []


def test_the_stack_is_emptied_after_errors():
    with pytest.raises(ZeroDivisionError), handlers.seed(rng_seed=0):
        raise ZeroDivisionError
    assert primitives._PYRO_STACK == []


def test_sample_messages():
    msg = message(lambda: numpyro.sample("x", dist.Normal(0.0, 1.0), sample_shape=(2,)))
    assert msg["name"] == "x" and not msg["is_observed"] and isinstance(msg["fn"], dist.Normal)
    assert msg["kwargs"]["sample_shape"] == (2,) and msg["value"].shape == (2,)
    assert msg["scale"] is None and msg["infer"] == {} and not msg["cond_indep_stack"]
    assert "intermediates" in msg


def test_observed_messages():
    msg = message(lambda: numpyro.sample("x", dist.Normal(0.0, 1.0), obs=0.5))
    assert msg["is_observed"] and msg["value"] == 0.5


def test_scales_multiply_in_messages():
    def program():
        with handlers.scale(scale=2.0), handlers.scale(scale=3.0):
            numpyro.sample("x", dist.Normal(0.0, 1.0))

    assert message(program)["scale"] == 6.0


def test_plates():
    def program():
        with numpyro.plate("a", 3, dim=-2), numpyro.plate("b", 5, subsample_size=2):
            numpyro.sample("x", dist.Normal(0.0, 1.0))

    frames = message(program)["cond_indep_stack"]
    assert {(f.name, f.dim, f.size) for f in frames} == {("a", -2, 3), ("b", -1, 2)}
    args = {m["name"]: m["args"] for m in spy_on(program).leaving if m["type"] == "plate"}
    assert args["a"] == (3, None) and args["b"] == (5, 2)  # size, subsample size


def test_wrappers_of_distributions():
    def program():
        with numpyro.plate("n", 3), handlers.mask(mask=jnp.array([True, False, True])):
            numpyro.sample("x", dist.Normal(0.0, 1.0).expand([2]).to_event(1))

    fn, layers = message(program)["fn"], []
    while isinstance(fn, dist.ExpandedDistribution | dist.MaskedDistribution | dist.Independent):
        layers.append(type(fn))
        fn = fn.base_dist
    assert isinstance(fn, dist.Normal)
    assert dist.MaskedDistribution in layers and dist.Independent in layers


def test_factors_are_observed_units():
    msg = message(lambda: numpyro.factor("f", jnp.array([1.0, 2.0])))
    assert msg["is_observed"] and isinstance(msg["fn"], Unit)
    np.testing.assert_array_equal(msg["fn"].log_prob(msg["value"]), [1.0, 2.0])


def test_factors_in_plates_and_masks_are_still_units():
    def program():
        with numpyro.plate("n", 2), handlers.mask(mask=True):
            numpyro.factor("f", 1.0)

    fn = message(program)["fn"]
    while hasattr(fn, "base_dist"):
        fn = fn.base_dist
    assert isinstance(fn, Unit)


def test_params_and_deterministic_sites():
    assert message(lambda: numpyro.param("w", 1.5), "param")["value"] == 1.5
    assert message(lambda: numpyro.deterministic("d", 2.5), "deterministic")["value"] == 2.5


def test_keys_are_asked_for_by_messages():
    class Answer(primitives.Messenger):
        def process_message(self, msg):
            if msg["type"] == "prng_key":
                assert msg["kwargs"]["rng_key"] is None
                msg["value"] = "the answer"

    with Answer():
        assert numpyro.prng_key() == "the answer"


def test_a_seed_handler_answers_before_outer_ones():
    (msg,) = [m for m in spy_on(numpyro.prng_key).entering if m["type"] == "prng_key"]
    assert msg["kwargs"]["rng_key"] is not None and msg["value"] is None


class TestUnconstrainedReplay:
    def replay(self, program, z):
        substitute = handlers.substitute(
            program, substitute_fn=lambda s: infer_util._unconstrain_reparam(z, s)
        )
        return handlers.trace(substitute).get_trace()

    def test_real_sites_are_substituted(self):
        trace = self.replay(lambda: numpyro.sample("x", dist.Normal(0.0, 1.0)), {"x": 0.5})
        assert trace["x"]["value"] == 0.5 and set(trace) == {"x"}

    def test_other_sites_bring_their_jacobian_as_a_factor(self):
        trace = self.replay(lambda: numpyro.sample("x", dist.HalfNormal(1.0)), {"x": 0.5})
        np.testing.assert_allclose(trace["x"]["value"], np.exp(0.5), rtol=1e-6)
        (factor,) = [s for name, s in trace.items() if name != "x"]
        assert isinstance(factor["fn"], Unit)
        np.testing.assert_allclose(factor["fn"].log_prob(factor["value"]), 0.5)

    def test_the_factor_can_be_marked_on_its_way(self):
        """As capture.replay does; the name alone does not tell in scopes."""

        def mark(site):
            with handlers.infer_config(config_fn=lambda _: {"mark": True}):
                return infer_util._unconstrain_reparam({"a.x": 0.5}, site)

        def program():
            with handlers.scope(prefix="a", divider="."):
                numpyro.sample("x", dist.HalfNormal(1.0))

        trace = handlers.trace(handlers.substitute(program, substitute_fn=mark)).get_trace()
        assert {name for name, s in trace.items() if s["infer"].get("mark")} == set(trace) - {"a.x"} != set()


class TestControlFlow:
    def scan(self):
        def step(x, y):
            x = numpyro.sample("x", dist.Normal(x, 1.0))
            numpyro.sample("y", dist.Normal(x, 1.0), obs=y)
            return x, None

        scan(step, 0.0, jnp.zeros(3))

    def cond(self):
        def branch(loc):
            return numpyro.sample("x", dist.Normal(loc, 1.0))

        cond(jnp.array(True), branch, branch, 0.0)

    def test_where_a_scan_message_has_its_body(self):
        msg = message(self.scan, "control_flow")
        assert callable(msg["args"][0]) and not callable(msg["args"][1])
        assert msg["kwargs"]["substitute_stack"] == [] and "name" not in msg

    def test_where_a_cond_message_has_its_bodies(self):
        msg = message(self.cond, "control_flow")
        assert [callable(a) for a in msg["args"]] == [False, True, True, False]
        assert msg["kwargs"]["substitute_stack"] == [] and "name" not in msg

    @pytest.mark.parametrize("which", ["scan", "cond"])
    def test_sites_inside_are_repeated_outside_with_a_mark(self, which):
        spy = spy_on(getattr(self, which))
        repeated = [m for m in spy.leaving if m["type"] == "sample"]
        assert repeated and all(m["_control_flow_done"] for m in repeated)
        assert repeated[0]["name"] == "x" and repeated[0]["value"].shape == ((3,) if which == "scan" else ())
        assert repeated[0]["fn"].batch_shape == repeated[0]["value"].shape

    def test_conditions_reach_inside_through_the_substitute_stack(self):
        spy = Spy()
        with spy, handlers.seed(rng_seed=0), handlers.condition(data={"x": jnp.arange(3.0)}):
            self.scan()
        (msg,) = [m for m in spy.leaving if m["type"] == "control_flow"]
        assert [kind for kind, _ in msg["kwargs"]["substitute_stack"]] == ["condition"]
        (x,) = [m for m in spy.leaving if m.get("name") == "x"]
        assert x["is_observed"]
        np.testing.assert_array_equal(x["value"], [0, 1, 2])

    def test_marks_in_infer_survive(self):
        def step(x, _):
            numpyro.sample("x", dist.Normal(0.0, 1.0), infer={"mark": True})
            return x, None

        (msg,) = [m for m in spy_on(lambda: scan(step, 0.0, jnp.zeros(3))).leaving if m["type"] == "sample"]
        assert msg["infer"]["mark"] is True

    def test_what_a_scan_message_holds(self):
        msg = message(lambda: scan(lambda x, y: (x, y), 0.0, jnp.zeros(3), history=0), "control_flow")
        body, init, xs, length, reverse = msg["args"]
        assert callable(body) and init == 0.0 and xs.shape == (3,) and length is None and reverse is False
        assert msg["kwargs"]["history"] == 0 and "rng_key" in msg["kwargs"]

    def test_a_scan_message_with_a_value_does_not_run(self):
        """As capture_scan answers for scans; and handlers further out do not see a stopped message."""

        class Answer(primitives.Messenger):
            def process_message(self, msg):
                if msg["type"] == "control_flow":
                    msg["value"], msg["stop"] = ((0, None, "carry"), (PytreeTrace({}), "ys")), True

        outer = Spy()
        with outer, handlers.seed(rng_seed=0), Answer():
            assert scan(lambda x, y: 1 / 0, 0.0, jnp.zeros(3)) == ("carry", "ys")
        assert [m for m in outer.entering + outer.leaving if m["type"] == "control_flow"] == []

    def test_the_function_of_a_scan_message_gives_its_results_and_sites_in_order(self):
        def body(x, _):
            numpyro.sample("z", dist.Normal(0.0, 1.0))
            return numpyro.sample("a", dist.Normal(x, 1.0)), x

        class Run(primitives.Messenger):
            def process_message(self, msg):
                if msg["type"] == "control_flow":
                    with handlers.block():
                        (_, _, carry), (trace, ys) = msg["fn"](*msg["args"], **msg["kwargs"])
                    found.append((jnp.shape(carry), ys.shape, list(trace.trace)))

        found = []
        with handlers.seed(rng_seed=0), Run():
            with handlers.seed(rng_seed=1):
                scan(body, 0.0, None, length=3)
        assert found == [((), (3,), ["z", "a"])]

    def test_a_scans_sites_follow_its_message_as_it_leaves(self):
        leaving = spy_on(self.scan).leaving
        kinds = [m["type"] for m in leaving if m["type"] in ("control_flow", "sample")]
        assert kinds == ["control_flow", "sample", "sample"]

    def test_a_stopped_site_in_a_body_is_seen_by_inner_handlers_alone(self):
        class Stop(primitives.Messenger):
            def process_message(self, msg):
                msg["stop"] = True
                if msg["type"] == "sample":
                    msg["value"] = 3.0

        outer, inner = Spy(), Spy()
        with outer, Stop(), inner, numpyro.plate("n", 2), handlers.scale(scale=2.0):
            assert numpyro.sample("x", dist.Normal(0.0, 1.0)) == 3.0
        assert outer.entering == outer.leaving == []
        (msg,) = [m for m in inner.leaving if m["type"] == "sample"]
        assert msg["fn"].batch_shape == (2,) and msg["scale"] == 2.0

    def test_plates_refuse_scans_in_these_words(self):
        with pytest.raises(NotImplementedError, match="control flow primitive under a `plate`"):
            with handlers.seed(rng_seed=0), numpyro.plate("n", 2):
                self.scan()

    def test_scopes_name_the_sites_of_a_scan_from_outside_in(self):
        """So their prefix is that of capture_scan: of all scopes but those that enter the body."""
        scopes = [handlers.scope(prefix=name, divider=".") for name in "ab"]
        assert [(s.prefix, s.divider) for s in scopes] == [("a", "."), ("b", ".")]
        spy = Spy()
        with spy, scopes[0], scopes[1], handlers.seed(rng_seed=0):
            self.scan()
        assert {m["name"] for m in spy.leaving if m["type"] == "sample"} == {"a.b.x", "a.b.y"}

    def test_unconstrained_values_are_taken_apart_by_step(self):
        def substitute_fn(site):
            return infer_util._unconstrain_reparam({"x": jnp.arange(3.0)}, site)

        trace = handlers.trace(handlers.substitute(self.scan, substitute_fn=substitute_fn)).get_trace()
        np.testing.assert_array_equal(trace["x"]["value"], [0, 1, 2])


def test_uncondition_forgets_observations():
    unconditioned = handlers.uncondition(lambda: numpyro.sample("x", dist.Normal(0.0, 1.0), obs=1e6))
    site = handlers.trace(handlers.seed(unconditioned, rng_seed=0)).get_trace()["x"]
    assert not site["is_observed"] and site["value"] < 100


def test_blocked_sites_take_a_key_from_the_stack():
    """So an unseeded, blocked site does not stop the program: scopes in scans must not lose values."""
    with handlers.seed(rng_seed=0), handlers.block():
        assert jnp.isfinite(numpyro.sample("x", dist.Normal(0.0, 1.0)))


def test_provenance_takes_shapes_and_tells_results_apart():
    def fn(**given):
        return {
            "sum": given["a:0"] + given["b"][0],
            "none": jnp.zeros(()),
            "where": jnp.where(given["b"][1], 0, 1),
        }

    shape = jax.ShapeDtypeStruct((), jnp.float32)
    found = eval_provenance(fn, **{"a:0": shape, "b": (shape, shape)})
    assert found == {"sum": frozenset({"a:0", "b"}), "none": frozenset(), "where": frozenset({"b"})}
