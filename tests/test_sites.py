"""The table of sites, and the picture of a model."""

import jax.numpy as jnp
import numpy as np
import numpyro
import pytest
from numpyro import handlers
from numpyro.contrib.control_flow import scan
from problems import EFFECT, SIGMA, eight_schools

import mcx
import mcx.dist as dist
from mcx.errors import MethodError


@mcx.model
def example(x, y=None):
    b = mcx.sample("b", dist.Dirichlet(jnp.ones(3)))
    s = mcx.sample("s", dist.HalfNormal(1.0))
    with mcx.plate("row", len(x)):
        k = mcx.sample("k", dist.Poisson(s))
        m = mcx.deterministic("m", b[0] * x + k)
        mcx.sample("y", dist.Normal(m, s), obs=y)
    mcx.factor("f", -s)
    mcx.factor("g", -s, kind="prior")


X = np.zeros(4, np.float32)

TABLE = """\
site  kind           distribution  batch  event  value  dtype    dims     support                 observed  terms  notes
b     latent         Dirichlet     ()     (3,)   (3,)   float32  b_dim_0  simplex
s     latent         HalfNormal    ()     ()     ()     float32           positive(0)
row   plate                                      4
k     discrete       Poisson       (4,)   ()     (4,)   int32    row      integer_nonnegative(0)
m     deterministic                              (4,)   float32  row
y     observed       Normal        (4,)   ()     (4,)   float32  row      real                    yes       4
f     factor         factor        ()     ()     ()     float32                                             1
g     factor         factor        ()     ()     ()     float32
3 unconstrained parameters, 5 log-likelihood terms"""  # noqa: E501


def test_text_and_html_say_the_same():
    table = example(X, y=X).sites()
    assert repr(table) == "Sites of example\n" + TABLE and str(table) == TABLE
    html = table._repr_html_()
    assert html.startswith("<table><caption>example</caption>") and html.count("<tr>") == 1 + len(table)
    for row in table.rows():
        assert all(f"<td>{cell}</td>" in html for cell in row.values())


def test_html_is_escaped():
    @mcx.model
    def model():
        mcx.sample("a<b>&c", dist.Normal(0.0, 1.0))

    html = model().sites()._repr_html_()
    assert "a&lt;b&gt;&amp;c" in html and "a<b>" not in html


def test_a_model_without_sites():
    @mcx.model
    def empty():
        pass

    table = empty().sites()
    assert str(table) == "site\n0 unconstrained parameters, 0 log-likelihood terms" and len(table) == 0
    assert "<table>" in table._repr_html_()


def test_lookup_and_order():
    table = example(X, y=X).sites()
    assert [s.name for s in table] == ["b", "s", "row", "k", "m", "y", "f", "g"]
    assert table["y"].observed and not table["b"].observed
    assert "y" in table and "nothing" not in table
    assert [s.name for s in table.of_kind("factor")] == ["f", "g"]
    with pytest.raises(KeyError):
        table["nothing"]


def test_without_data_the_observed_site_is_latent():
    site = example(X).sites()["y"]
    assert site.kind == "latent" and site.num_terms == 0 and not site.likelihood


def test_nothing_is_computed():
    """Shapes are read abstractly: these matrices would take 40 GB each."""

    @mcx.model
    def model():
        x = mcx.sample("x", dist.Normal(jnp.zeros((100_000, 100_000)), 1.0))
        mcx.deterministic("inverse", jnp.linalg.inv(x @ x))

    assert model().sites()["inverse"].shape == (100_000, 100_000)


class TestTerms:
    @pytest.mark.parametrize(
        "distribution, shape, terms",
        [
            (lambda: dist.Normal(0.0, 1.0), (), 1),
            (lambda: dist.Normal(0.0, 1.0), (4, 3), 12),
            (lambda: dist.Normal(jnp.zeros(3), 1.0), (4, 3), 12),
            (lambda: dist.Normal(jnp.zeros(3), 1.0).to_event(1), (4, 3), 4),
            (lambda: dist.MultivariateNormal(jnp.zeros(3), jnp.eye(3)), (3,), 1),
        ],
    )
    def test_one_a_draw(self, distribution, shape, terms):
        @mcx.model
        def model(y):
            mcx.sample("y", distribution(), obs=y)

        site = model(np.zeros(shape, np.float32)).sites()["y"]
        assert site.num_terms == terms == int(np.prod(site.terms_shape))

    def test_of_factors(self):
        @mcx.model
        def model():
            mcx.factor("one", 0.5)
            mcx.factor("three", jnp.zeros(3))
            with mcx.plate("n", 2):
                mcx.factor("two", 0.5)
            numpyro.factor("plain", 0.5)
            mcx.factor("prior", jnp.zeros(3), kind="prior")

        terms = {s.name: s.num_terms for s in model().sites() if s.kind == "factor"}
        assert terms == {"one": 1, "three": 3, "two": 2, "plain": 1, "prior": 0}


class TestDimensions:
    def test_plates_name_axes_from_the_right(self):
        @mcx.model
        def model():
            with mcx.plate("q", 3, dim=-2):
                mcx.sample("column", dist.Normal(0.0, 1.0))
                with mcx.plate("p", 2, dim=-1):
                    mcx.sample("matrix", dist.Normal(0.0, 1.0))
                    mcx.sample("vectors", dist.Normal(jnp.zeros(5), 1.0).to_event(1))

        table = model().sites()
        assert (table["column"].shape, table["column"].dims) == ((3, 1), ("q", "column_dim_1"))
        assert (table["matrix"].shape, table["matrix"].dims) == ((3, 2), ("q", "p"))
        assert (table["vectors"].shape, table["vectors"].dims) == ((3, 2, 5), ("q", "p", "vectors_dim_2"))
        assert table["vectors"].batch_shape == (3, 2) and table["vectors"].event_shape == (5,)

    def test_values_that_do_not_fill_a_plate_do_not_carry_its_name(self):
        @mcx.model
        def model(y):
            with mcx.plate("n", 3):
                mcx.deterministic("d", jnp.zeros(2))
                mcx.sample("y", dist.Normal(0.0, 1.0), obs=y)

        table = model(np.zeros((1,), np.float32)).sites()
        assert table["d"].dims == ("d_dim_0",) and table["y"].dims == ("y_dim_0",)

    def test_unconstrained_shapes(self):
        @mcx.model
        def model():
            with mcx.plate("n", 2):
                mcx.sample("simplex", dist.Dirichlet(jnp.ones(4)))
                mcx.sample("correlation", dist.LKJCholesky(3))

        table = model().sites()
        assert table["simplex"].unconstrained_shape == (2, 3)
        assert table["correlation"].unconstrained_shape == (2, 3) and table["correlation"].shape == (2, 3, 3)
        assert table.dim == 12


class TestNotes:
    def test_improper_masked_scaled_subsampled(self):
        @mcx.model
        def model(y):
            x = mcx.sample("x", dist.ImproperUniform(dist.constraints.positive, (), ()))
            with handlers.scale(scale=2.0):
                mcx.sample("scaled", dist.Normal(x, 1.0), obs=y)
            with handlers.scale(scale=1.0):
                mcx.sample("plain", dist.Normal(x, 1.0), obs=y)
            with handlers.mask(mask=False):
                mcx.sample("masked", dist.Normal(x, 1.0), obs=y)
            with mcx.plate("n", 10, subsample_size=4):
                mcx.sample("z", dist.Normal(0.0, 1.0))

        rows = {row["site"]: row for row in model(np.float32(0.0)).sites().rows()}
        assert rows["x"]["notes"] == "improper"
        assert rows["scaled"]["notes"] == rows["masked"]["notes"] == "masked or scaled"
        assert rows["plain"]["notes"] == ""
        assert rows["n"]["value"] == "4 of 10"

    def test_distributions_are_named_through_their_wrappers(self):
        @mcx.model
        def model():
            with mcx.plate("n", 2), handlers.mask(mask=True):
                mcx.sample("x", dist.Gamma(1.0, 1.0).expand([3]).to_event(1))
                mcx.sample("t", dist.TruncatedNormal(0.0, 1.0, low=-1.5))

        table = model().sites()
        assert table["x"].distribution == "Gamma" and table["x"].support == "positive(0)"
        assert table["t"].support in ("greater_than_eq(-1.5)", "greater_than(-1.5)")  # NumPyro 0.22, 0.21

    def test_bounds_that_depend_on_values_are_dots(self):
        @mcx.model
        def model():
            u = mcx.sample("u", dist.Uniform(0.0, 2.0))
            mcx.sample("x", dist.Uniform(0.0, u))

        table = model().sites()
        assert table["u"].support == "interval(0, 2)" and table["x"].support == "interval(0, ...)"


class TestPictures:
    def test_mermaid(self):
        assert eight_schools(SIGMA, y=EFFECT).render() == MERMAID

    def test_dot(self):
        assert eight_schools(SIGMA, y=EFFECT).render("dot") == DOT

    def test_unknown_format(self):
        with pytest.raises(MethodError, match=r"(?s)mermaid.*dot.*'png'"):
            eight_schools(SIGMA).render("png")

    def test_nested_plates_and_submodels(self):
        @mcx.model
        def part():
            return mcx.sample("x", dist.Normal(0.0, 1.0))

        @mcx.model
        def model(y):
            a = mcx.sample("a", part.bind())
            with mcx.plate("outer", 2, dim=-2), mcx.plate("inner", 3, dim=-1):
                mcx.sample("y", dist.Normal(a, 1.0), obs=y)

        lines = model(np.zeros((2, 3), np.float32)).render().splitlines()
        assert "  s_a_x --> s_y" in lines
        assert [line.strip() for line in lines if "subgraph" in line] == [
            'subgraph s_outer["outer (2)"]',
            'subgraph s_outer_s_inner["inner (3)"]',
        ]
        assert lines.count("  end") == 2

    def test_scans_and_subsampled_plates(self):
        @mcx.model
        def model(y):
            def step(x, _):
                with mcx.plate("side", 2):
                    x = mcx.sample("x", dist.Normal(x, 1.0))
                return x, None

            with handlers.condition(data={"x": y}):
                scan(step, jnp.zeros(2), None, length=3)
            with mcx.plate("row", 10, subsample_size=4):
                mcx.sample("z", dist.Normal(0.0, 1.0))

        picture = model(np.zeros((3, 2), np.float32)).render()
        assert '["side (2)"]' in picture and '["row (10)"]' in picture and '["x ~ Normal"]' in picture

    def test_names_that_differ_only_in_punctuation_stay_apart(self):
        @mcx.model
        def model():
            mcx.sample("a.x", dist.Normal(0.0, 1.0))
            mcx.sample("a_x", dist.Normal(0.0, 1.0))

        lines = model().render().splitlines()
        identifiers = {line.strip().split("(")[0] for line in lines[1:]}
        assert len(identifiers) == 2

    def test_quotes_in_names_are_escaped(self):
        @mcx.model
        def model():
            mcx.sample('say "x"', dist.Normal(0.0, 1.0))

        assert r"say \"x\"" in model().render("dot")
        assert "say #quot;x#quot;" in model().render()


MERMAID = """\
graph TD
  s_mu(["mu ~ Normal"])
  s_tau(["tau ~ HalfCauchy"])
  subgraph s_school["school (8)"]
  s_z(["z ~ Normal"])
  s_y["y ~ Normal"]
  end
  s_mu --> s_y
  s_tau --> s_y
  s_z --> s_y"""

DOT = """\
digraph {
  s_mu [label="mu ~ Normal" style=filled fillcolor=white];
  s_tau [label="tau ~ HalfCauchy" style=filled fillcolor=white];
  subgraph cluster_s_school { label="school (8)";
  s_z [label="z ~ Normal" style=filled fillcolor=white];
  s_y [label="y ~ Normal" style=filled fillcolor=lightgrey];
  }
  s_mu -> s_y;
  s_tau -> s_y;
  s_z -> s_y;
}"""
