"""Rule: a release says one version everywhere, is built alike from the tree and from the sdist, and works alone."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from collections.abc import Iterable, Iterator
from importlib.metadata import distribution
from pathlib import Path

import attrs
import httpx
import pytest
from packaging.metadata import Metadata
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version
from program import serving, trio_claude

from trio_claude import __version__
from trio_claude.api import PAGES

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "trio_claude"
WEB = PACKAGE / "web"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
UNRELEASED = "Unreleased"
RELEASED = re.compile(r"(\d+\.\d+\.\d+) \(\d{4}-\d\d-\d\d\)")
MADE = {
    ".git", ".hypothesis", ".mypy_cache", ".peers", ".pytest_cache", ".ruff_cache", ".venv", "__pycache__", "build",
    "node_modules", "site",
}  # fmt: skip
"""Folders that programs make, and that belong in nothing that is released."""
EVERY = """
import importlib, pkgutil, trio_claude
found = pkgutil.walk_packages(trio_claude.__path__, "trio_claude.")
names = [one.name for one in found if not one.name.startswith(("trio_claude.sdk", "trio_claude.tracing", "trio_claude.nodes"))]
for name in names:
    if not name.endswith(".__main__"):
        importlib.import_module(name)
print(trio_claude.__file__, len(names))
"""
"""Import all but what starts at once, and what needs the extras `[claude]`, `[otel]` and `[redis]`."""
SDIST = {
    "trio_claude", "tests", "benchmarks", "docs", ".ci", ".dockerignore", ".gitignore", "CHANGELOG.md", "CONTRIBUTING.md", "LICENSE",
    "PKG-INFO", "README.md", "SECURITY.md", "pyproject.toml",
}  # fmt: skip
"""What is at the top of an sdist."""


# -- the version ------------------------------------------------------------------------------------------------------


def unlike(changelog: str, version: str) -> str:
    """Return what of a changelog does not go with a version, nothing where all does."""
    heads = re.findall(r"^## (.*)$", changelog, re.MULTILINE)
    if heads[:1] != [UNRELEASED]:
        return f"the first heading is not {UNRELEASED}"
    if bad := [head for head in heads[1:] if not RELEASED.fullmatch(head)]:
        return f"not of the form `1.2.3 (2026-01-31)`: {bad}"
    releases = [Version(head.split()[0]) for head in heads[1:]]
    if releases != sorted(set(releases), reverse=True):
        return "the newest release is not first"
    newest = releases[0] if releases else Version("0")
    pending = changelog.partition(f"## {UNRELEASED}\n")[2].partition("\n## ")[0].strip()
    if pending and Version(version) <= newest:
        return f"there are changes since {newest}, and the version is {version}"
    if not pending and Version(version) != newest:
        return f"there are no changes since {newest}, and the version is {version}"
    return ""


def test_the_changelog_goes_with_the_version() -> None:
    assert unlike((ROOT / "CHANGELOG.md").read_text(), __version__) == ""


@pytest.mark.parametrize(
    ("heads", "version", "told"),
    [
        ("## Unreleased\n- new\n## 0.1.0 (2026-01-31)\n- old", "0.2.0", ""),
        ("## Unreleased\n\n## 0.10.0 (2026-02-28)\n- new\n## 0.9.0 (2026-01-31)\n- old", "0.10.0", ""),
        ("## Unreleased\n- new\n## 0.1.0 (2026-01-31)\n- old", "0.1.0", "changes since 0.1.0"),
        ("## Unreleased\n\n## 0.1.0 (2026-01-31)\n- old", "0.2.0", "no changes since 0.1.0"),
        ("## Unreleased\n\n## 0.1.0 (2026-01-31)\n\n## 0.2.0 (2026-01-31)", "0.2.0", "newest release is not first"),
        ("## Unreleased\n\n## 0.1.0", "0.1.0", "not of the form"),
        ("## 0.1.0 (2026-01-31)", "0.1.0", "first heading"),
    ],
)
def test_a_changelog_that_does_not_go_with_the_version_is_found(heads: str, version: str, told: str) -> None:
    assert told in unlike(heads, version)
    assert bool(told) == bool(unlike(heads, version))


def test_the_version_stands_once_in_python_and_once_in_npm() -> None:
    assert PROJECT["dynamic"] == ["version"]
    assert re.fullmatch(r"\d+\.\d+\.\d+", __version__)  # what npm calls a version too
    assert json.loads((WEB / "npm" / "package.json").read_text())["version"] == __version__


# -- what is built ----------------------------------------------------------------------------------------------------


@attrs.frozen
class Built:
    """A release: `again` is the wheel that the sdist makes."""

    sdist: Path
    wheel: Path
    again: Path

    @property
    def info(self) -> str:
        return f"trio_claude-{__version__}.dist-info"


def hatchling(tree: Path, target: str, folder: Path) -> Path:
    """Build one thing with the locked hatchling; return it."""
    words = [sys.executable, "-m", "hatchling", "build", "-t", target, "-d", str(folder)]
    told = subprocess.run(words, cwd=tree, capture_output=True, text=True, check=False)
    assert told.returncode == 0, told.stderr
    (built,) = folder.iterdir()
    return built


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Built:
    folder = tmp_path_factory.mktemp("built")
    sdist = hatchling(ROOT, "sdist", folder / "sdist")
    with tarfile.open(sdist) as packed:
        packed.extractall(folder / "tree", filter="data")
    (tree,) = (folder / "tree").iterdir()
    return Built(sdist, hatchling(ROOT, "wheel", folder / "wheel"), hatchling(tree, "wheel", folder / "again"))


def files(folder: Path) -> Iterator[str]:
    """Yield the files of the tree below a folder, but for those that programs make."""
    for path in folder.rglob("*"):
        name = path.relative_to(ROOT)
        if path.is_file() and not MADE & set(name.parts):
            yield str(name)


def test_the_sdist_makes_the_same_wheel(built: Built) -> None:
    assert built.wheel.name == built.again.name == f"trio_claude-{__version__}-py3-none-any.whl"
    assert built.wheel.read_bytes() == built.again.read_bytes()


def test_the_wheel_holds_the_package_and_no_source_of_the_page(built: Built) -> None:
    kept = {name for name in files(PACKAGE) if not name.startswith("trio_claude/web/") or "/web/dist/" in name}
    info = {f"{built.info}/{name}" for name in ("METADATA", "RECORD", "WHEEL", "entry_points.txt", "licenses/LICENSE")}
    assert {"trio_claude/py.typed", "trio_claude/web/dist/client.js", "trio_claude/containment/guardian.py"} < kept
    assert set(zipfile.ZipFile(built.wheel).namelist()) == kept | info


def test_the_sdist_holds_tests_and_documents_and_no_clutter(built: Built) -> None:
    assert built.sdist.name == f"trio_claude-{__version__}.tar.gz"
    with tarfile.open(built.sdist) as packed:
        names = {name.partition("/")[2] for name in packed.getnames()}
    assert {name.partition("/")[0] for name in names} == SDIST
    assert not [name for name in names if MADE & set(name.split("/"))]
    wanted = {name for folder in ("tests", "docs", ".ci") for name in files(ROOT / folder)}
    assert {"tests/test_release.py", "docs/releasing.md", ".ci/test.lock"} < wanted <= names
    assert {name for name in files(ROOT / "benchmarks") if name.endswith(".py")} <= names


def test_the_metadata_is_right(built: Built) -> None:
    """Hatchling has refused classifiers that there are not; here all else is held against the specification."""
    told = Metadata.from_email(zipfile.ZipFile(built.wheel).read(f"{built.info}/METADATA"), validate=True)
    assert (told.name, told.version) == ("trio-claude", Version(__version__))
    assert (told.license_expression, told.license_files) == ("MIT", ["LICENSE"])
    assert (told.description_content_type, told.description) == ("text/markdown", (ROOT / "README.md").read_text())
    assert told.requires_python is not None
    minors = [one.rpartition(".")[2] for one in told.classifiers or () if "Python :: 3." in one]
    for minor in minors:
        assert f"3.{minor}" in told.requires_python
    assert f"3.{int(minors[0]) - 1}" not in told.requires_python
    assert {canonicalize_name(name) for name in told.provides_extra or ()} == {
        "claude",
        "docs",
        "jwt",
        "otel",
        "redis",
        "test",
    }


# -- the wheel alone --------------------------------------------------------------------------------------------------


def needed(lines: Iterable[str], extras: Iterable[str] = ()) -> Iterator[str]:
    """Yield the distributions that requirements name, and those that these need."""
    for requirement in map(Requirement, lines):
        if not requirement.marker or any(requirement.marker.evaluate({"extra": one}) for one in ("", *extras)):
            yield canonicalize_name(requirement.name)
            yield from needed(distribution(requirement.name).requires or (), requirement.extras)


@pytest.fixture(scope="module")
def alone(built: Built, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A virtual environment of the wheel and what it names as needed, which is taken from the tests' own: no network."""
    home = tmp_path_factory.mktemp("alone")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", home], check=True)
    words = ["--isolated", "--python", str(home / "bin" / "python"), "install", "--no-index", "--no-deps"]
    subprocess.run([sys.executable, "-m", "pip", *words, str(built.wheel)], check=True, capture_output=True)
    (packages,) = home.glob("lib/python3.*/site-packages")
    told = Metadata.from_email(zipfile.ZipFile(built.wheel).read(f"{built.info}/METADATA"))
    for name in set(needed(map(str, told.requires_dist or ()))):
        found = distribution(name)
        for top in {file.parts[0] for file in found.files or ()} - {"..", "__pycache__"}:
            (packages / top).symlink_to(str(found.locate_file(top)))
    return home


@pytest.fixture
def env(alone: Path, folder: Path) -> dict[str, str]:
    return {
        "PATH": str(alone / "bin"),
        "HOME": str(folder),
        "TRIO_CLAUDE_CLI": "fake-claude",
        "TRIO_CLAUDE_STATE": str(folder / "state"),
    }


async def test_the_wheel_alone_says_its_version(alone: Path, env: dict[str, str]) -> None:
    told = await trio_claude("--version", env=env, program=[str(alone / "bin" / "trio-claude")])
    assert (told.returncode, told.stdout.decode()) == (0, f"trio-claude, version {__version__}\n")


async def test_the_wheel_names_all_that_its_modules_need(alone: Path, env: dict[str, str]) -> None:
    told = await trio_claude("-I", "-c", EVERY, env=env, program=[str(alone / "bin" / "python")])
    assert told.returncode == 0, told.stderr.decode()
    where, count = told.stdout.decode().split()
    assert where.startswith(f"{alone}/lib/")
    others = [PACKAGE / "__init__.py", PACKAGE / "sdk.py", *PACKAGE.glob("tracing/*.py"), *PACKAGE.glob("nodes/*.py")]
    assert int(count) == len(list(PACKAGE.rglob("*.py"))) - len(others)


async def test_the_wheel_alone_finds_what_it_needs(alone: Path, env: dict[str, str]) -> None:
    told = await trio_claude("doctor", "--port", "0", env=env, program=[str(alone / "bin" / "trio-claude")])
    assert told.returncode == 0, told.stdout
    assert f"cli: {alone}/bin/fake-claude" in told.stdout.decode()


async def test_the_wheel_alone_serves_runs_and_the_page(alone: Path, env: dict[str, str]) -> None:
    program = [str(alone / "bin" / "trio-claude")]
    async with (
        serving("serve", "--port", "0", env=env, program=program) as (_, url),
        httpx.AsyncClient(trust_env=False, base_url=url) as http,
    ):
        told = await trio_claude("ask", "hello", "--url", url, env=env, program=program)
        assert (told.returncode, told.stdout) == (0, b"Hello from stub.\n")
        for path, (name, _) in PAGES.items():
            assert (await http.get(path)).content == (WEB / name).read_bytes(), path


async def test_the_wheel_alone_demonstrates(alone: Path, env: dict[str, str]) -> None:
    """Without the `[claude]` extra a stand-in runs."""
    program = [str(alone / "bin" / "trio-claude")]
    del env["TRIO_CLAUDE_CLI"]
    async with serving("demo", "--port", "0", env=env, program=program) as (_, url):
        told = await trio_claude("ask", "hello", "--url", url, env=env, program=program)
    assert (told.returncode, told.stdout) == (0, b"Hello from stub.\n")
