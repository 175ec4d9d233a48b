"""The package's sources as a graph of imports, and their annotations; run as a script, it prints both.

Everything is read from the syntax, nothing is imported. Imports within functions and for type checkers count.
"""

import ast
import collections
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parent.parent
PACKAGES = {"mcx": "mcx", "inference": "mcx.inference", "estimators": "mcx.estimators"}


@cache
def sources():
    """Files by module name, each once: the symlinks in ``mcx/`` are not followed."""
    found = {}
    for top, package in PACKAGES.items():
        for path in sorted((ROOT / top).rglob("*.py")):
            parts = path.relative_to(ROOT / top).with_suffix("").parts
            if top == "mcx" and parts[0] in PACKAGES:
                continue
            parts = parts[:-1] if parts[-1] == "__init__" else parts
            found[".".join((package, *parts))] = path
    return found


@cache
def tree(path):
    return ast.parse(path.read_text())


@cache
def imports():
    """Modules of the package that each module imports."""
    known, edges = sources(), {}
    for module, path in known.items():
        edges[module] = set()
        for node in ast.walk(tree(path)):
            names = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.module:
                names = [f"{node.module}.{alias.name}" for alias in node.names]
                names = [name if name in known else node.module for name in names]
            edges[module].update(name for name in names if name in known and name != module)
    return edges


def folder(module):
    """The folder of a module; ``__init__`` files, which collect names, and files of ``mcx/`` are apart."""
    parent = module.rpartition(".")[0]
    return module if sources()[module].name == "__init__.py" or parent in ("", "mcx") else parent + "/"


def between_folders():
    """Imports between folders, and the modules that make them: ``{folder: {folder: [(from, to)]}}``."""
    found = collections.defaultdict(lambda: collections.defaultdict(list))
    for module, others in imports().items():
        for other in others:
            if folder(module) != folder(other):
                found[folder(module)][folder(other)].append((module, other))
    return found


def circles(edges):
    """Sets of nodes that reach each other (Tarjan 1972), each sorted."""
    index, low, stack, found = {}, {}, [], []

    def visit(node):
        index[node] = low[node] = len(index)
        stack.append(node)
        for other in edges.get(node, ()):
            if other not in index:
                visit(other)
            if other in stack:
                low[node] = min(low[node], low[other])
        if low[node] == index[node]:
            at = stack.index(node)
            if len(stack) - at > 1:
                found.append(sorted(stack[at:]))
            del stack[at:]

    for node in edges:
        if node not in index:
            visit(node)
    return found


def annotations(path):
    """Annotations of arguments, returns and fields of classes."""
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            a = node.args
            every = [*a.posonlyargs, *a.args, *a.kwonlyargs, a.vararg, a.kwarg]
            yield from (arg.annotation for arg in every if arg is not None and arg.annotation is not None)
            if node.returns is not None:
                yield node.returns
        elif isinstance(node, ast.ClassDef):
            yield from (entry.annotation for entry in node.body if isinstance(entry, ast.AnnAssign))


def says_any(annotation):
    """Whether an annotation is or holds ``Any``."""
    if isinstance(annotation, ast.Constant) and isinstance(annotation.value, str):
        return "Any" in annotation.value.replace("[", " ").replace("]", " ").replace(",", " ").split()
    return any(getattr(node, "id", getattr(node, "attr", None)) == "Any" for node in ast.walk(annotation))


def any_by_folder():
    """``{folder: (annotations with Any, annotations)}``."""
    found = collections.defaultdict(lambda: (0, 0))
    for path in sources().values():
        name = path.parent.relative_to(ROOT).as_posix() + "/"
        said = [says_any(annotation) for annotation in annotations(path)]
        found[name] = (found[name][0] + sum(said), found[name][1] + len(said))
    return dict(found)


def main():
    print("circles of files:", *circles(imports()), sep="\n  ")
    print("circles of folders:", *circles(between_folders()), sep="\n  ")
    shares = any_by_folder()
    total = tuple(sum(counts) for counts in zip(*shares.values(), strict=True))
    print("annotations with Any:")
    for name, (said, every) in [*sorted(shares.items(), key=lambda item: -item[1][0]), ("all", total)]:
        print(f"  {name:36} {said:5} of {every:5} {said / max(1, every):6.0%}")


if __name__ == "__main__":
    main()
