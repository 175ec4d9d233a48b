"""Every Python snippet of the documentation runs, and the example does what the README says."""

import re
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
from problems import slow_unless

ROOT = Path(__file__).parent.parent
DOCS = sorted(str(p.relative_to(ROOT)) for p in (ROOT / "docs").glob("*.md"))
PAGES = ["README.md", "CONTRIBUTING.md", *DOCS]
SLOW = {
    "README.md",
    "docs/diffusion.md",
    "docs/expectations.md",
    "docs/inference.md",
    "docs/samplers.md",
    "docs/sliced_wasserstein.md",
    "docs/smoothing.md",
    "docs/state_space.md",
}  # one program a snippet, and large ones


@pytest.mark.parametrize("page", slow_unless([p for p in PAGES if p not in SLOW], PAGES))
def test_snippets_run_in_order(page, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    snippets = re.findall(r"```python\n(.*?)```", (ROOT / page).read_text(), flags=re.S)
    scope: dict[str, object] = {"__name__": "snippet"}
    for number, snippet in enumerate(snippets):
        if "enable_compilation_cache" in snippet:
            continue  # changes the process for good; tests/test_programs.py runs it in its own
        capsys.readouterr()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            exec(compile(snippet, f"{page} snippet {number}", "exec"), scope)
        expected = re.findall(r"^# (.+)$", snippet, flags=re.M) if "print(" in snippet else []
        printed = capsys.readouterr().out
        for line in expected:
            assert line.strip() in printed, f"{page} snippet {number}: {line!r} was not printed"


def test_links_lead_somewhere():
    for page in PAGES:
        for link in re.findall(r"\]\((?!http)([^)#]+)", (ROOT / page).read_text()):
            assert ((ROOT / page).parent / link).exists(), f"{page}: {link}"


@pytest.mark.slow
def test_example(tmp_path):
    done = subprocess.run(
        [sys.executable, str(ROOT / "examples" / "eight_schools.py")],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    assert "divergent transitions: 0" in done.stdout
    assert "school" in done.stdout and "theta[A]" in done.stdout
    assert "compiling" in done.stderr and "Warning" not in done.stderr
    for name in ("eight_schools.nc", "eight_schools.png"):
        assert (tmp_path / "out" / name).stat().st_size > 10_000
        assert f"out/{name}" in done.stdout
