"""The documentation: the site builds, what it points to exists, what it shows can be read, and the tutorial runs."""

import ast
import json
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer.main
import yaml
from tools import reference_pages

from tests.cli.conftest import clean_environment, workdir
from tests.cli.test_serve import Start, start
from tests.servers.postgres import PostgresServer, postgres
from tests.servers.redis import RedisServer, free_port, redis_server
from tests.servers.s3 import S3Server, moto_server
from tollkeeper.admin.openapi import DATA_PLANE
from tollkeeper.cli import app
from tollkeeper.gateway.dialects.base import ENDPOINTS
from tollkeeper.gateway.dialects.kept import ROUTES
from tollkeeper.gateway.server import MODELS_PATH

__all__ = ["moto_server", "postgres", "redis_server", "start", "workdir"]
ROOT = Path(__file__).resolve().parent.parent
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), ROOT / "benchmarks" / "RESULTS.md"])
TUTORIAL = ROOT / "docs" / "tutorial" / "first-request.md"
BLOCK = re.compile(r"^( *)```(\S*)\n(.*?)^\1```$", re.MULTILINE | re.DOTALL)
PLAIN = ("", "text", "sql", "nginx", "ini", "dockerfile", "promql")
"""Kinds of blocks that are only shown."""


def _blocks() -> Iterator[Any]:
    for page in PAGES:
        for number, (indent, kind, text) in enumerate(BLOCK.findall(page.read_text()), 1):
            if kind not in PLAIN and not kind.startswith("{"):
                code = re.sub(f"^{indent}", "", text, flags=re.MULTILINE)
                yield pytest.param(kind, code, id=f"{page.relative_to(ROOT)}:{number}")


def test_the_site_builds_without_a_warning(tmp_path: Path) -> None:
    """A link between pages or to a heading that does not exist, a page in no table of contents: each is a warning."""
    command = [sys.executable, "-m", "sphinx", "-q", "-W", "--keep-going", "-d", str(tmp_path / "trees")]
    built = subprocess.run(
        [*command, str(ROOT / "docs"), str(tmp_path / "site")], capture_output=True, text=True, check=False
    )
    assert built.returncode == 0, built.stderr
    page = (tmp_path / "site" / "index.html").read_text()
    loaded = re.findall(r'<(?:script|img)[^>]* src="([^"]+)"|<link[^>]* rel="stylesheet"[^>]* href="([^"]+)"', page)
    assert loaded and not [one for pair in loaded for one in pair if one.startswith(("http", "//"))]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_files_that_pages_point_to_exist(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#:\s]+)(?:#[^)]*)?\)", BLOCK.sub("", page.read_text())):
        assert (page.parent / target).exists(), target


def test_pages_that_the_program_names_exist() -> None:
    """In messages, comments, alert rules and tools: whoever follows them finds something."""
    files = [*(ROOT / "src").rglob("*.py"), *(ROOT / "src").rglob("*.lua"), *(ROOT / "deploy").rglob("*")]
    files += [*(ROOT / "tests").rglob("*.py"), *(ROOT / "tools").glob("*"), ROOT / "Makefile", *ROOT.glob("*.toml")]
    files += [*ROOT.glob("*.md")]
    named = {
        (name, file)
        for file in files
        if file.is_file() and file.suffix != ".pyc"
        for name in re.findall(r"(?<![\w/])docs/[\w/.-]*\w\.(?:md|json)\b", file.read_text(errors="replace"))
    }
    assert len(named) > 20
    assert {(name, str(file)) for name, file in named if not (ROOT / name).exists()} == set()


@pytest.mark.parametrize(("kind", "code"), list(_blocks()))
def test_blocks_of_code_can_be_read(kind: str, code: str) -> None:
    """Python compiles, shell parses and names commands and options of ours that exist, data can be read."""
    if kind == "python":
        compile(code, "block", "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
    elif kind in ("sh", "console"):
        shell = code if kind == "sh" else "\n".join(line[2:] for line in code.splitlines() if line.startswith("$ "))
        assert shell.strip()
        checked = subprocess.run(["bash", "-n"], input=shell, capture_output=True, text=True, check=False)
        assert checked.returncode == 0, checked.stderr
        for line in shell.replace("\\\n", " ").splitlines():
            for ours in re.findall(r"(?:^|[;&|(]|/)\s*tollkeeper ((?:[^;&|#\"']|\"[^\"]*\"|'[^']*')*)", line):
                _check_command(re.sub(r"\"[^\"]*\"|'[^']*'", "_", ours).split())
    elif kind == "json":
        json.loads(code)
    elif kind == "toml":
        tomllib.loads(code)
    elif kind in ("yaml", "yml"):
        list(yaml.safe_load_all(code))
    else:
        pytest.fail(f"a block of kind {kind}: say how it is checked, or that it is only shown (PLAIN)")


def _check_command(words: list[str]) -> None:
    command: Any = typer.main.get_command(app)
    told = [word for word in words if not word.startswith("-")]
    while told and hasattr(command, "list_commands"):
        command = command.get_command(None, told.pop(0))
        assert command is not None, f"there is no command {' '.join(words)}"
    known = {name for p in command.params for name in (*p.opts, *p.secondary_opts)} | {"--help", "-h"}
    asked = {word.partition("=")[0] for word in words if re.match(r"--?[a-z]", word)}
    assert asked <= known, f"{' '.join(words)}: {asked - known}"


def test_the_tutorial_runs(start: Start, redis_server: RedisServer, workdir: Path) -> None:
    """Every command of it, in order, in one shell; each line that is shown is there, `…` standing for anything.

    It runs on Redis, so that afterwards every key there is one that the reference tells.
    """
    redis_server.command("FLUSHALL")
    demo = start("serve", "--demo", "--port", "0", REDIS_URL=redis_server.url).wait_for("Ctrl-C stops")
    secret = re.search(r"tk_[\w-]{43}", demo.output)
    assert secret
    environ = {"REDIS_URL": redis_server.url, "KEY": secret[0]}
    _play(TUTORIAL, workdir, environ, {"http://127.0.0.1:8080": demo.url})
    keys = redis_server.lines("KEYS", "*")
    assert demo.stop() == 0, demo.output
    patterns = [_pattern(pattern) for pattern in reference_pages.redis_patterns()]
    assert len(keys) > 5
    assert [key for key in keys if not any(pattern.fullmatch(key) for pattern in patterns)] == []


@pytest.mark.skipif("FIRST_HOUR" not in os.environ, reason="takes half a minute: make test-hour")
def test_the_first_hour_runs(
    redis_server: RedisServer, postgres: PostgresServer, moto_server: S3Server, workdir: Path
) -> None:
    """Every command of docs/tutorial/first-hour.md, but for those that say where the servers are."""
    redis_server.command("FLUSHALL")
    environ = {
        "REDIS_URL": redis_server.url,
        "DATABASE_URL": postgres.create_database("hour"),
        "LOG_STORE_URL": moto_server.url(),
        "TOLLKEEPER_DIGEST_KEY": "d" * 64,
        "TOLLKEEPER_ADMIN_TOKEN": "t" * 40,
        **moto_server.environ,
    }
    ports = {number: str(free_port()) for number in ("8080", "8081", "8090")}
    _play(TUTORIAL.with_name("first-hour.md"), workdir, environ, ports)


def _play(page: Path, workdir: Path, environ: dict[str, str], replaced: dict[str, str]) -> None:
    """Run the commands of a page's console blocks in one shell, and look for what they show in what they say."""
    shown: list[tuple[str, list[str]]] = []
    for _, kind, text in BLOCK.findall(page.read_text()):
        for line in text.splitlines() if kind == "console" else ():
            if line.startswith("$ "):
                shown.append((line[2:], []))
            else:
                shown[-1][1].append(line)
    assert len(shown) > 5
    script = "\n".join(f"printf '\\0'\n{command}" for command, _ in shown)
    for written, here in replaced.items():
        script = script.replace(written, here)
    tollkeeper = workdir / "bin" / "tollkeeper"
    tollkeeper.parent.mkdir()
    tollkeeper.write_text(f'#!/bin/sh\nexec {sys.executable} -m tollkeeper "$@"\n')
    tollkeeper.chmod(0o755)
    environ = clean_environment() | environ
    environ["PATH"] = f"{tollkeeper.parent}:{environ['PATH']}"
    done = subprocess.run(
        ["bash", "-emc", script], cwd=workdir, env=environ, capture_output=True, text=True, timeout=110, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    for (command, lines), output in zip(shown, done.stdout.split("\0")[1:], strict=True):
        missing = [line for line in lines if not _shown(line, output)]
        assert not missing, (command, missing, output)


def _shown(line: str, output: str) -> bool:
    expected = re.sub(r"\s+", r"\\s+", ".*".join(re.escape(part).replace("\\ ", " ") for part in line.split("…")))
    return re.search(rf"^{expected}\s*$", output.replace("\r", ""), re.MULTILINE) is not None


def _pattern(told: str) -> re.Pattern[str]:
    """`cost:{root}[:<scope>]:<period>` → what matches such keys. A last part in `<…>` may have colons."""
    text = re.escape(told).replace(r"\[", "(").replace(r"\]", ")?").replace(r"\ ", " ")
    text = re.sub(r"\\\{.*?\\\}", r"\\{[^}]*\\}", text)
    return re.compile(re.sub(r"<[^>]*>", "[^{}]+", text))


def test_every_variable_of_the_environment_is_told() -> None:
    """Whatever looks like one of ours, or of a service that we read, and stands in the source as a string."""
    kind = r'"((?:TOLLKEEPER|REDIS|AWS|LISTEN|NOTIFY|LITELLM|BILLING|DATABASE|LOG_STORE|WEB)_[A-Z0-9_]*[A-Z0-9])"'
    source = "".join(file.read_text() for file in (ROOT / "src").rglob("*.py"))
    found = set(re.findall(kind, source))
    page = (ROOT / "docs" / "ENV_VARIABLES.md").read_text()
    assert len(found) > 30
    assert {variable for variable in found if f"`{variable}`" not in page} == set()


def test_every_endpoint_of_the_data_plane_is_told() -> None:
    """In the OpenAPI document, which the control plane writes without knowing the data plane."""
    served = {("post", path) for path in ENDPOINTS} | {(kept.method.lower(), kept.endpoint.path) for kept in ROUTES}
    served |= {("get", MODELS_PATH), ("get", f"{MODELS_PATH}/{{name}}")}
    assert {(method, path) for method, path, _, _ in DATA_PLANE} == served


def test_every_header_of_the_data_plane_is_told() -> None:
    """Whatever the gateway reads or answers with is on the page of headers."""
    found: set[str] = set()
    for file in (ROOT / "src" / "tollkeeper" / "gateway").rglob("*.py"):
        found |= set(re.findall(r'\bb"(x-[a-z-]+|retry-after[a-z-]*|request-id|authorization)"', file.read_text()))
    assert len(found) > 12
    assert found <= {*reference_pages.ANSWERED, *reference_pages.READ}


def test_every_key_of_redis_is_made_by_a_function_that_tells_it() -> None:
    """In Python. (Scripts are given the names of keys, or make them of such.)"""
    for file in (ROOT / "src" / "tollkeeper" / "governance").glob("*.py"):
        made = re.findall(r'f"([a-z]+):\{\{\{', file.read_text())
        told = {pattern.partition(":")[0] for pattern in reference_pages.redis_patterns()}
        assert set(made) <= told, file
