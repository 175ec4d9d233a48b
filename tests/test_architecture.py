"""The rules that the sources keep: directions of imports, sizes, names, documentation, annotations."""

import ast
import collections
import dataclasses
import inspect
import re

import pytest
from architecture import ROOT, any_by_folder, between_folders, circles, imports, sources, tree

import mcx
import mcx.diffusion
import mcx.estimators

# --- imports -----------------------------------------------------------------------------------------

# From the bottom to the top. A module imports from its own folder and from those on the lines before; folders
# on one line do not import each other. The longest prefix counts.
LAYERS = [
    ["mcx.errors", "mcx.types", "mcx._version", "mcx.dist", "mcx.cache", "mcx.sites"],
    ["mcx.ops"],
    ["mcx.target"],
    ["mcx.model"],
    ["mcx.run"],
    ["mcx.results"],
    ["mcx.methods"],
    ["mcx.inference.mcmc", "mcx.estimators"],
    ["mcx.inference.smc"],
    ["mcx.inference.conditional_smc"],
    ["mcx.inference.filtering"],
    [
        "mcx.inference.tempering",
        "mcx.inference.smoothing",
        "mcx.inference.particle_gibbs",
        "mcx.inference.pmmh",
    ],
    ["mcx.inference.smc2", "mcx.inference.maximize"],
    ["mcx.inference.diffusion.models"],
    ["mcx.inference.diffusion.integrators"],
    [
        "mcx.inference.diffusion.correctors",
        "mcx.inference.diffusion.denoising_mcmc",
        "mcx.inference.diffusion.guided",
    ],
    ["mcx.verbs"],
    # what collects names for users, and what tests use
    ["mcx.testing", "mcx.diffusion", "mcx.functionals", "mcx.combinators"],
    ["mcx.inference", "mcx.inference.diffusion"],
    ["mcx"],
    ["mcx.__main__"],
]
RANK = {name: (rank, name) for rank, names in enumerate(LAYERS) for name in names}


def layer(module):
    """Rank and name of the layer that a module belongs to."""
    while module not in RANK:
        module = module.rpartition(".")[0]
    return RANK[module]


def test_every_module_has_a_layer():
    tops = {"mcx", "mcx.inference", "mcx.inference.diffusion"}
    homeless = [m for m in sources() if layer(m)[1] in tops and m not in tops]
    assert not homeless, "give them a place in LAYERS"


def test_imports_point_downward():
    wrong = []
    for module, others in imports().items():
        rank, name = layer(module)
        above = [other for other in others if layer(other)[1] != name and layer(other)[0] >= rank]
        wrong += [f"{module} -> {other}" for other in above]
    assert not wrong, "\n".join(sorted(wrong))


def test_estimators_and_inference_do_not_import_each_other():
    families = ("mcx.inference.", "mcx.estimators.")
    for one, other in (families, families[::-1]):
        wrong = {
            m: n for m, found in imports().items() if m.startswith(one) for n in found if n.startswith(other)
        }
        assert not wrong


def test_imports_of_files_have_no_circle():
    assert not circles(imports())


def test_imports_of_folders_have_no_circle():
    edges = between_folders()
    found = [
        f"{a} -> {b}: {edges[a][b][:3]}"
        for loop in circles(edges)
        for a in loop
        for b in edges[a]
        if b in loop
    ]
    assert not found, "\n".join(found)


def test_circles_and_directions_are_seen():
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"b", "d"}, "d": set()}) == [["b", "c"]]
    assert circles({"a": {"b", "c"}, "b": {"c"}, "c": set()}) == []
    assert layer("mcx.inference.smc2.kernel")[1] == "mcx.inference.smc2"
    assert layer("mcx.ops.keys") < layer("mcx.target") < layer("mcx.model.series.block")
    assert "mcx.errors" in imports()["mcx.ops.keys"]


# --- sizes and names ---------------------------------------------------------------------------------


def test_files_have_at_most_400_lines():
    files = [*sources().values(), *(ROOT / "tests").rglob("*.py")]
    long = {str(p.relative_to(ROOT)): n for p in files if (n := len(p.read_text().splitlines())) > 400}
    assert not long


def test_names_of_tests_are_unique():
    """A test's random key is a function of its name without the file, see ``conftest.py``."""
    found = collections.defaultdict(list)
    for path in sorted((ROOT / "tests").rglob("test_*.py")):
        for node in tree(path).body:
            members = node.body if isinstance(node, ast.ClassDef) else [node]
            prefix = f"{node.name}::" if isinstance(node, ast.ClassDef) else ""
            for member in members:
                if isinstance(member, ast.FunctionDef) and member.name.startswith("test_"):
                    found[prefix + member.name].append(path.name)
    assert len(found) > 900
    assert not {name: files for name, files in found.items() if len(files) > 1}


# --- what is documented ------------------------------------------------------------------------------

# What implements no algorithm that somebody published: the language, verbs, records, plain transformations
NO_ALGORITHM = {
    *("deterministic", "factor", "markov", "model", "plate", "sample"),
    *("expect", "filter", "forecast", "infer", "integrate", "load", "maximize", "predict", "program", "run"),
    *("smooth", "enable_compilation_cache", "expectations", "as_mixture", "levels"),
    *("AdditiveFunctional", "Checkpoint", "Corrections", "Denoised", "Elliptical", "Estimate", "FeynmanKac"),
    *("GaussianMixture", "KnownMeans", "Mixture", "Posterior", "Run", "Schedule", "Score", "Target"),
    *("LevelsFromClassifier", "LevelsFromDensity", "LevelsFromScore", "SlicedTarget"),
    *("Composition", "anneal", "geometric", "product"),
}

MADE_BY_MCX = {"BoundModel", "Model", "Predictions"}  # users call functions that return them


def public():
    """Functions and dataclasses that users call, by name."""
    found = {}
    for module in (mcx, mcx.estimators, mcx.diffusion):
        for name in set(module.__all__) - MADE_BY_MCX:
            value = getattr(module, name)
            if inspect.isfunction(value) or dataclasses.is_dataclass(value) or _is_plain_class(value):
                found[f"{module.__name__}.{name}"] = value
    return dict(sorted(found.items()))


def _is_plain_class(value):
    return inspect.isclass(value) and value.__init__ is not object.__init__ and not _is_protocol(value)


def _is_protocol(value):
    return getattr(value, "_is_protocol", False)


REFERENCE = re.compile(r"attributes are those of :class:`(?:mcx\.)?(\w+)`")


def documentation(value):
    """The docstring, and those of classes of mcx whose fields it has too: bases, and what it refers to."""
    if not inspect.isclass(value):
        return inspect.getdoc(value) or ""
    docs = [c.__doc__ for c in value.__mro__ if c.__module__.startswith("mcx") and c.__doc__]
    docs += [getattr(mcx, name).__doc__ for doc in docs for name in REFERENCE.findall(doc)]
    return "\n\n".join(inspect.cleandoc(doc) for doc in docs)


def arguments(value):
    if dataclasses.is_dataclass(value):
        return [f.name for f in dataclasses.fields(value) if f.init and not f.name.startswith("_")]
    names = inspect.signature(value).parameters
    return [name for name in names if name not in ("self", "args", "kwargs") and not name.startswith("_")]


@pytest.mark.parametrize("name", public())
def test_every_argument_is_documented(name):
    """With its shape, unit or count: that is for the reader to judge, that it is there is checked here."""
    value = public()[name]
    text = documentation(value)
    missing = [a for a in arguments(value) if not re.search(rf"\b{a}\b", text)]
    assert not missing
    if len(arguments(value)) > 1:
        assert re.search(r"^(Args|Attributes):$", text, re.M)


@pytest.mark.parametrize("name", [n for n in public() if n.rpartition(".")[2] not in NO_ALGORITHM])
def test_every_algorithm_has_a_source(name):
    assert re.search(r"\bSources?: \S", documentation(public()[name]))


def test_no_exception_is_stale():
    assert NO_ALGORITHM <= {name.rpartition(".")[2] for name in public()}


def test_contributing_names_what_exists():
    """Files, folders and modules of the project; what begins with a dot is made by tools."""
    text = (ROOT / "CONTRIBUTING.md").read_text()
    names = [n for n in re.findall(r"`([^`\s]+)`", text) if not re.match(r"[.$_]|.*test_x\.py", n)]
    paths = [n for n in names if re.fullmatch(r"[\w./-]+(/|\.(py|md|toml|lock|txt|sh))", n) or "/" in n]
    assert len(paths) > 10
    assert not [n for n in paths if not (ROOT / n).exists()]
    modules = [n for n in names if re.fullmatch(r"mcx(\.[a-z_0-9]+)+", n)]
    assert not [n for n in modules if n not in sources() and n.rpartition(".")[0] not in sources()]


# --- annotations -------------------------------------------------------------------------------------


def test_few_annotations_are_any():
    """`python tests/architecture.py` lists them by folder."""
    said, every = (sum(counts) for counts in zip(*any_by_folder().values(), strict=True))
    assert every > 4000
    assert said / every <= 0.15
