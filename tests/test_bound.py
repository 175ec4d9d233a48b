"""Bound models as pytrees and as keys of caches."""

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest
from problems import coin, regression, regression_data

import mcx
import mcx.dist as dist

QUIET = {"progress": False, "warnings": "ignore"}


def same_structure(a, b):
    return a.structure == b.structure and hash(a.structure) == hash(b.structure)


@mcx.model
def anything(*args, **kwargs):
    return args, kwargs


class TestPytree:
    def test_arrays_are_leaves_and_python_values_static(self):
        bound = anything(
            np.zeros(2), jnp.ones(3), np.float32(1), 2.5, 3, True, "text", None, len, name=np.arange(4)
        )
        leaves = jax.tree_util.tree_leaves(bound)
        assert [np.shape(x) for x in leaves] == [(2,), (3,), (), (4,)]

    def test_flatten_and_unflatten(self):
        bound = regression(*regression_data())
        leaves, treedef = jax.tree_util.tree_flatten(bound)
        again = jax.tree_util.tree_unflatten(treedef, leaves)
        assert same_structure(bound, again)
        np.testing.assert_array_equal(again.arguments()["y"], bound.arguments()["y"])

    def test_the_program_sees_its_arguments_as_they_were(self):
        args, kwargs = anything({"x": [np.arange(2), 3]}, label=("a", None)).run()
        np.testing.assert_array_equal(args[0]["x"][0], [0, 1])
        assert args[0]["x"][1] == 3 and kwargs == {"label": ("a", None)}

    def test_tree_map_changes_the_data(self):
        bound = regression(*regression_data())
        doubled = jax.tree_util.tree_map(lambda x: 2 * x, bound)
        assert isinstance(doubled, mcx.BoundModel)
        np.testing.assert_array_equal(doubled.arguments()["x"], 2 * bound.arguments()["x"])

    def test_jit_and_vmap_over_data(self):
        x, _ = regression_data()
        values = {"intercept": 0.5, "slope": 1.0, "noise": 1.0}
        sets = jnp.stack([regression_data(seed=s)[1] for s in range(3)])
        density = jax.jit(jax.vmap(lambda y: regression(x, y=y).log_density(values)))(sets)
        alone = [regression(x, y=y).log_density(values) for y in sets]
        np.testing.assert_allclose(density, alone, rtol=1e-5)

    def test_a_batch_of_bound_models(self):
        bounds = [regression(*regression_data(seed=s)) for s in range(3)]
        batch = jax.tree_util.tree_map(lambda *leaves: jnp.stack(leaves), *bounds)
        values = {"intercept": 0.5, "slope": 1.0, "noise": 1.0}
        density = jax.jit(jax.vmap(lambda b: b.log_density(values)))(batch)
        np.testing.assert_allclose(density, [b.log_density(values) for b in bounds], rtol=1e-5)

    def test_gradients_with_respect_to_data(self):
        bound = regression(*regression_data())
        values = {"intercept": 0.5, "slope": 1.0, "noise": 1.0}
        gradient = jax.grad(lambda b: b.log_density(values))(bound)
        x, y = regression_data()
        np.testing.assert_allclose(gradient.arguments()["y"], 0.5 + x - y, rtol=1e-4, atol=1e-5)

    def test_structure_holds_shapes_and_dtypes_but_no_values(self):
        assert same_structure(anything(np.zeros(3)), anything(jnp.ones(3)))
        assert not same_structure(anything(np.zeros(3)), anything(np.zeros(4)))
        assert not same_structure(anything(np.zeros(3)), anything(np.zeros(3, int)))
        assert not same_structure(anything(np.zeros(3)), anything(x=np.zeros(3)))

    def test_one_model_bound_by_position_or_by_name(self):
        x, y = regression_data()
        assert same_structure(regression(x, y), regression(y=y, x=x))

    @pytest.mark.parametrize("a, b", [(1, True), (1, 1.0), (1.0, True), (0, False), (0.0, -0.0), ("1", 1)])
    def test_python_values_that_compare_equal_are_not_one(self, a, b):
        """They make different programs: 1 / n, x ** 2, `if flag is True`."""
        assert not same_structure(anything(a), anything(b))
        assert same_structure(anything(a), anything(a))

    def test_unhashable_statics_go_by_identity(self):
        labels = np.array(["a", "b"])
        assert same_structure(anything(labels), anything(labels))
        assert not same_structure(anything(labels), anything(labels.copy()))
        assert jax.tree_util.tree_leaves(anything(labels, {1, 2})) == []

    def test_dictionaries_are_taken_apart(self):
        data = {"x": np.zeros(2), "options": {"scale": 2.0}}
        assert len(jax.tree_util.tree_leaves(anything(data))) == 1
        assert not same_structure(anything(data), anything({**data, "options": {"scale": 3.0}}))

    def test_other_models_and_distributions_as_arguments(self):
        bound = anything(coin.bind(np.array(1)), dist.Normal(jnp.zeros(2), 1.0))
        (submodel, prior), _ = bound.run()
        assert submodel.name == "coin" and prior.batch_shape == (2,)

    def test_arguments_have_defaults(self):
        assert coin().arguments() == {"y": None}
        assert list(regression(*regression_data()).arguments()) == ["x", "y"]


class TestDataFrames:
    frame = pd.DataFrame({"x": [0.5, 1.5, -1.0], "n": [1, 2, 3], "name": ["a", "b", "c"]})

    def test_columns_are_data(self):
        bound = regression(self.frame["x"], y=self.frame["x"])
        assert [x.dtype.kind for x in jax.tree_util.tree_leaves(bound)] == ["f", "f"]
        assert np.isfinite(bound.log_density({"intercept": 0.0, "slope": 1.0, "noise": 1.0}))

    def test_columns_of_text_and_tables_are_static(self):
        assert jax.tree_util.tree_leaves(anything(self.frame["name"], self.frame)) == []

    @pytest.mark.parametrize(
        "column",
        [
            pd.Series([1, 2], dtype="Int64"),
            pd.Series([True, False], dtype="boolean"),
            pd.Series([0.5, 1.5], dtype="Float64"),
        ],
        ids=lambda c: str(c.dtype),
    )
    def test_nullable_columns_are_data(self, column):
        (leaf,) = jax.tree_util.tree_leaves(anything(column))
        assert leaf.dtype.kind == column.dtype.kind and leaf.shape == (2,)
        assert anything(column).structure == anything(column.copy()).structure

    def test_missing_values_of_nullable_columns_become_nan(self):
        (leaf,) = jax.tree_util.tree_leaves(anything(pd.Series([1, None], dtype="Int64")))
        np.testing.assert_array_equal(leaf, [1.0, np.nan])

    def test_dates_are_static(self):
        dates = pd.Series(pd.date_range("2020-01-01", periods=2))
        bound = anything(dates, dates.to_numpy(), np.timedelta64(1, "D"))
        assert jax.tree_util.tree_leaves(bound) == [] and hash(bound.structure)
