"""README and docs tell the truth: their commands run, and the demo reaches its figures.

Blocks marked ```sh are run line by line in one folder, in the order of the files; blocks marked
```python are run as they stand. `make` lines are left out: they are this suite, or the demo.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest
from children import Child

from monosemy.cli.main import COMMANDS, main

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
_BLOCK = re.compile(r"^```(\w+)\n(.*?)^```", re.MULTILINE | re.DOTALL)
_SKIPPED = ("make ", "git ", "cd ", "python recipes/", "open ")


def blocks(page: Path, language: str) -> list[str]:
    return [body for kind, body in _BLOCK.findall(page.read_text()) if kind == language]


def commands() -> list[str]:
    lines = [line for page in PAGES for block in blocks(page, "sh") for line in block.splitlines()]
    lines = [line.split("  #")[0].strip() for line in lines]
    lines = [line for line in lines if line and not line.startswith(("#", *_SKIPPED))]
    return list(dict.fromkeys(lines))


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo, as `make demo` runs it but on fewer tokens: it reaches its figures by then."""
    folder = tmp_path_factory.mktemp("docs")
    before = Path.cwd()
    os.chdir(folder)
    try:
        main(["demo", "--overwrite", "--tokens", "160000"])
    finally:
        os.chdir(before)
    # The prompts that docs/activations.md shows.
    (folder / "prompts.txt").write_text("The red bicycle\nA fast train\n")
    return folder


def test_the_demo_reaches_its_figures(demo: Path) -> None:
    metrics = json.loads((demo / "runs/demo/metrics.json").read_text())
    table = metrics["suites"][0]["tables"][0]
    figures = {
        row["name"]: dict(zip(table["columns"], row["values"], strict=True))
        for row in table["rows"]
    }
    assert figures["loss recovered (mean)"]["dictionary"]["value"] >= 0.90
    assert figures["dead share"]["dictionary"]["value"] < 0.10
    fvu = {name: cell["value"] for name, cell in figures["FVU"].items()}
    assert fvu["dictionary"] == min(fvu.values())
    assert 28 < figures["L0"]["dictionary"]["value"] < 36
    page = (demo / "runs/demo/report.html").read_text()
    assert page.count('class="card"') >= 20 or page.count("<article") >= 20


def test_every_command_of_readme_and_docs_runs(
    demo: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(demo)
    found = commands()
    assert len(found) >= 5
    for line in found:
        words = shlex.split(line)
        assert words[0] == "monosemy", f"cannot test `{line}`"
        if words[1] == "demo":
            continue  # the fixture ran it
        if words[1] == "app":
            assert served(words), line
            continue
        main(words[1:])
        assert capsys.readouterr().out, line


def served(words: list[str]) -> bool:
    """Start the app as a user would, and say whether its first page is there."""
    code = "import sys; from monosemy.cli.main import main; main(sys.argv[1:])"
    command = [sys.executable, "-c", code, *words[1:], "--no-browser"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        address = next(
            re.findall(r"http://\S+", line)[0] for line in process.stderr if "http" in line
        )
        with urllib.request.urlopen(address) as page:
            found = b"features of layers.2" in page.read()
        process.terminate()
    return found


def test_the_python_of_readme_runs(demo: Path) -> None:
    for page in PAGES:
        for body in blocks(page, "python"):
            child = Child(demo / "log", "docs_child", demo, body)
            child.wait()
            assert child.exitcode == 0, f"{page.name}:\n{body}\n{child.written}"


def test_every_command_is_documented() -> None:
    readme = (ROOT / "README.md").read_text()
    for name in COMMANDS:
        assert f"monosemy {name}" in readme, name


def test_links_between_pages_lead_somewhere() -> None:
    for page in PAGES:
        for target in re.findall(r"\]\(([^)#]+)\)", page.read_text()):
            if "://" not in target:
                assert (page.parent / target).exists(), f"{page.name}: {target}"
