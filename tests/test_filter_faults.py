"""What ``mcx.filter`` does when particles collapse or potentials are no numbers, and what it refuses."""

import jax.numpy as jnp
import numpy as np
import pytest
from test_filter import Y, linear, run

import mcx
import mcx.dist as dist
from mcx.errors import CapabilityError, MethodError, ModelError, NonFiniteError, SupportError, WeightCollapse


@mcx.model
def flawed(y, scale):
    mcx.markov(
        "x",
        initial=lambda u: dist.Normal(0, 1),
        transition=lambda x, u: dist.Normal(x, 0.1),
        emission=lambda x, u: dist.Uniform(x - 1, x + 1) if scale is None else dist.Normal(x, scale(x)),
        obs=y,
    )


class TestFaults:
    def test_collapse(self):
        y = np.zeros(20, np.float32)
        y[12] = 50.0
        with pytest.raises(WeightCollapse, match="step 12: all 100 particles") as caught:
            mcx.filter(flawed(y, None), key=0, num_particles=100, progress=False)
        assert caught.value.step == 12
        assert np.isfinite(caught.value.result.mean["x"][:12]).all()
        assert np.isnan(caught.value.result.mean["x"][12])

    def test_nothing_is_lost_when_a_run_ends_early(self, monkeypatch):
        monkeypatch.setattr("mcx.inference.filtering.filter._PARTICLE_STEPS_PER_CHUNK", 500)
        y = np.zeros(20, np.float32)
        y[7] = 50.0
        with pytest.raises(WeightCollapse) as caught:
            mcx.filter(
                flawed(y, None), key=0, num_particles=100, progress=False, coords={"time": np.arange(20)}
            )
        part = caught.value.result
        assert not part.complete and part.num_times == 11
        assert "stopped early" in repr(part)
        assert part.to_datatree()["filtering"]["x"].shape == (11,)

    def test_nan_potentials(self):
        with pytest.raises(NonFiniteError, match="step 0: the log potential is NaN or"):
            mcx.filter(flawed(Y, lambda x: jnp.log(x - 0.5)), key=0, num_particles=100, progress=False)
        found = mcx.filter(
            flawed(Y[:7], lambda x: jnp.sqrt(x + 5)), key=0, num_particles=100, progress=False,
            method=mcx.ParticleFilter(max_nonfinite=1.0),
        )  # fmt: skip
        assert np.isfinite(found.log_evidence)

    @pytest.mark.parametrize(
        ("options", "error", "message"),
        [
            ({"params": {}}, ModelError, "no value for this site"),
            ({"params": {"phi": 2.0}}, SupportError, "outside of the site's support"),
            ({"params": {"phi": [0.1, 0.2]}}, ModelError, "wrong shape"),
            ({"params": {"phi": 0.5, "q": 1}}, ModelError, "no parameter here"),
            ({"num_particles": 0}, MethodError, "num_particles"),
            ({"num_chains": 0}, MethodError, "num_chains"),
            ({"history": "all"}, MethodError, "filter\\(history"),
            ({"quantiles": (2.0,)}, MethodError, "probabilities"),
            ({"name": "z"}, ModelError, "no such Markov block"),
            ({"method": mcx.NUTS()}, MethodError, "filter\\(method"),
            ({"coords": {"day": [1]}}, ValueError, "does not have"),
        ],
    )
    def test_bad_options(self, options, error, message):
        with pytest.raises(error, match=message):
            run(**options)

    def test_bad_methods(self):
        for bad in ({"kind": "best"}, {"resampling": "lottery"}, {"threshold": 2.0}, {"max_nonfinite": -1}):
            with pytest.raises(MethodError):
                mcx.ParticleFilter(**bad)
        for kind, lacking in (("guided", "proposal"), ("auxiliary", "lookahead")):
            with pytest.raises(CapabilityError, match=f"needs {lacking}="):
                run(method=mcx.ParticleFilter(kind=kind))

    def test_models_without_a_chain(self):
        @mcx.model
        def plain(y):
            mcx.sample("m", dist.Normal(0, 1), obs=y)

        with pytest.raises(CapabilityError, match="no Markov block"):
            mcx.filter(plain(0.0), key=0)
        with pytest.raises(ModelError, match=r"filter\(model\(data\)"):
            mcx.filter(linear, key=0)

    def test_likelihood_on_the_path(self):
        @mcx.model
        def outside(y):
            x = mcx.markov(
                "x",
                initial=lambda u: dist.Normal(0, 1),
                transition=lambda x, u: dist.Normal(x, 1),
                emission=lambda x, u: dist.Normal(x, 1),
                obs=y,
            )
            mcx.sample("total", dist.Normal(x.sum(), 1), obs=1.0)

        with pytest.raises(CapabilityError, match="depends on the path of 'x'") as caught:
            mcx.filter(outside(Y), key=0)
        assert caught.value.site == "total" and "emission=" in caught.value.remedy

    def test_data_that_depend_on_parameters(self):
        @mcx.model
        def centred(y):
            m = mcx.sample("m", dist.Normal(0, 1))
            mcx.markov(
                "x",
                initial=lambda u: dist.Normal(0, 1),
                transition=lambda x, u: dist.Normal(x, 1),
                emission=lambda x, u: dist.Normal(x, 1),
                obs=y - m,
            )

        with pytest.raises(CapabilityError, match="computed from this site"):
            mcx.filter(centred(Y), params={"m": 0.0}, key=0)

    def test_inputs_that_are_another_path(self):
        """Read at the origin, as inputs once were, the other path would be zeros."""

        @mcx.model
        def second(y):
            def walk(name, inputs=None):
                return mcx.markov(
                    name,
                    initial=lambda u: dist.Normal(0, 1),
                    transition=lambda x, u: dist.Normal(x if u is None else x + u, 1),
                    emission=lambda x, u: dist.Normal(x, 1),
                    obs=y,
                    inputs=inputs,
                )

            walk("b", inputs=walk("a"))

        with pytest.raises(CapabilityError, match="inputs of 'b' are computed from") as caught:
            mcx.filter(second(Y), name="b", key=0)
        assert caught.value.site == "a"
