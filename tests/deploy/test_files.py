"""The files in deploy/ fit each other and the program: names, ports, paths, users, waits. Each against its schema."""

import json
import re
import shutil
import subprocess
import tomllib
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import typer
import yaml

from tollkeeper.admin import Probes
from tollkeeper.app.supervisor import STOP_MARGIN_S, stop_limit_s
from tollkeeper.cli import app
from tollkeeper.settings import ENVIRONMENT, FROM_ENVIRONMENT_ONLY, Settings, check, convert

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
DOCKERFILE = (DEPLOY / "docker" / "Dockerfile").read_text()
UNIT = (DEPLOY / "systemd" / "tollkeeper.service").read_text()
COMPOSE: dict[str, Any] = yaml.safe_load((DEPLOY / "compose" / "compose.yaml").read_text())
KUBERNETES: dict[tuple[str, str], dict[str, Any]] = {
    (thing["kind"], thing["metadata"]["name"]): thing
    for file in sorted((DEPLOY / "kubernetes").glob("*.yaml"))
    if file.name != "kustomization.yaml"
    for thing in yaml.safe_load_all(file.read_text())
}
GATEWAY = KUBERNETES["StatefulSet", "tollkeeper"]["spec"]["template"]["spec"]
MIGRATION = KUBERNETES["Job", "tollkeeper-migrate"]["spec"]["template"]["spec"]
OURS = {name: service for name, service in COMPOSE["services"].items() if service["image"] == "tollkeeper"}
UID = "10001"
STOP_S = stop_limit_s(Settings().server.drain_timeout_s, Settings().logs.timeout_s) + STOP_MARGIN_S
PROVIDERS = {variable for variable, (_, _, _, base) in FROM_ENVIRONMENT_ONLY.items() for variable in (variable, base)}
KNOWN = {*ENVIRONMENT, *(f"{v}_FILE" for v, path in ENVIRONMENT.items() if path[0] == "secrets"), *PROVIDERS}
OF_OTHERS = re.compile(r"PATH|PYTHON[A-Z]+|AWS_(ACCESS_KEY_ID|SECRET_ACCESS_KEY|REGION|ENDPOINT_URL)")


def variables() -> Iterator[tuple[str, str]]:
    """(file, variable) of every variable that is set for our program."""
    for block in re.findall(r"^ENV (.*(?:\\\n.*)*)", DOCKERFILE, re.MULTILINE):
        yield from (("Dockerfile", name) for name in re.findall(r"([A-Z_]+)=", block))
    for service in OURS.values():
        yield from (("compose.yaml", name) for name in service.get("environment", {}))
    yield from (("secret", name) for name in KUBERNETES["Secret", "tollkeeper"]["stringData"])
    for line in re.findall(r"^Environment=(.*)", UNIT, re.MULTILINE):
        yield from (("tollkeeper.service", name) for name in re.findall(r"([A-Z_]+)=", line))
    example = (DEPLOY / "compose" / ".env.example").read_text()
    for name in re.findall(r"^([A-Z0-9_]+)=", example, re.MULTILINE):
        assert f"${{{name}:" in (DEPLOY / "compose" / "compose.yaml").read_text(), f"nobody reads {name}"


def test_every_variable_exists() -> None:
    """Each is in docs/ENV_VARIABLES.md, a provider's, or one that Python or the object store reads."""
    found = set(variables())
    assert len(found) > 20
    assert {(f, v) for f, v in found if v not in KNOWN and not OF_OTHERS.fullmatch(v)} == set()


def test_every_command_exists() -> None:
    """What the files start is a command with such options."""
    words = [service["command"] for service in OURS.values()]
    words += [container["args"] for spec in (GATEWAY, MIGRATION) for container in spec["containers"]]
    words += [match.split() for match in re.findall(r"^ExecStart=\S+/tollkeeper (.*)", UNIT, re.MULTILINE)]
    words.append(json.loads(re.findall(r"^CMD (.*)", DOCKERFILE, re.MULTILINE)[-1]))
    assert re.findall(r"^ENTRYPOINT (.*)", DOCKERFILE, re.MULTILINE) == ['["tollkeeper"]']
    commands: Any = typer.main.get_command(app)
    for name, *options in words:
        known = {option for p in commands.get_command(None, name).params for option in p.opts}
        assert {option for option in options if option.startswith("--")} <= known, name


def test_ports_and_paths_agree() -> None:
    """The image's port, data directory and user are those of the manifests, the compose file and Prometheus."""
    port = int(re.findall(r"TOLLKEEPER_PORT=(\d+)", DOCKERFILE)[0])
    data = re.findall(r"TOLLKEEPER_DATA_DIR=(\S+)", DOCKERFILE)[0]
    config = re.findall(r"^WORKDIR (.*)", DOCKERFILE, re.MULTILINE)[-1]
    assert re.findall(r"^EXPOSE (\d+)", DOCKERFILE, re.MULTILINE) == [str(port)]
    assert re.findall(r"^VOLUME (.*)", DOCKERFILE, re.MULTILINE) == [data]
    assert re.findall(r"^USER (.*)", DOCKERFILE, re.MULTILINE) == [f"{UID}:{UID}"]
    (container,) = GATEWAY["containers"]
    assert [p["containerPort"] for p in container["ports"]] == [port]
    mounts = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
    assert (mounts["data"], mounts["config"]) == (data, config)
    claims = KUBERNETES["StatefulSet", "tollkeeper"]["spec"]["volumeClaimTemplates"]
    provided = {v["name"] for v in (*GATEWAY["volumes"], *(claim["metadata"] for claim in claims))}
    assert set(mounts) == provided
    for spec in (GATEWAY, MIGRATION):
        security = spec["securityContext"]
        assert {str(security[name]) for name in ("runAsUser", "runAsGroup", "fsGroup")} == {UID}
        assert not spec["enableServiceLinks"], "TOLLKEEPER_PORT would be the service's address"
        assert all(c["securityContext"]["readOnlyRootFilesystem"] for c in spec["containers"])
    for name in ("gateway-1", "gateway-2"):
        service = OURS[name]
        assert service["ports"][0].endswith(f":{port}") and service["read_only"]
        assert f"{data}" in service["volumes"][0] and config in service["volumes"][1]
    assert len({OURS[name]["volumes"][0] for name in ("gateway-1", "gateway-2")}) == 2, "an outbox each"
    scraped = yaml.safe_load((DEPLOY / "compose" / "prometheus.yml").read_text())["scrape_configs"][0]
    assert scraped["job_name"] == "tollkeeper"
    assert scraped["static_configs"][0]["targets"] == [f"gateway-1:{port}", f"gateway-2:{port}"]
    assert f"TOLLKEEPER_DATA_DIR={data}" in UNIT and f"StateDirectory={Path(data).name}" in UNIT


def test_probes_ask_what_is_answered() -> None:
    """Liveness never asks for a dependency, readiness does."""
    (container,) = GATEWAY["containers"]
    paths = {kind: container[f"{kind}Probe"]["httpGet"]["path"] for kind in ("startup", "liveness", "readiness")}
    assert paths == {"startup": "/healthz", "liveness": "/healthz", "readiness": "/readyz"}
    assert {*paths.values()} <= Probes.PATHS and "'/healthz'" in DOCKERFILE


def test_whoever_stops_a_gateway_waits_long_enough() -> None:
    """As long as its own bounds allow, with the default settings."""
    for name in ("gateway-1", "gateway-2"):
        assert int(OURS[name]["stop_grace_period"].removesuffix("s")) >= STOP_S
    (container,) = GATEWAY["containers"]
    (before_s,) = [int(w) for w in container["lifecycle"]["preStop"]["exec"]["command"] if w.isdigit()]
    assert GATEWAY["terminationGracePeriodSeconds"] >= before_s + STOP_S
    assert int(re.findall(r"^TimeoutStopSec=(\d+)", UNIT, re.MULTILINE)[0]) >= STOP_S


def test_configurations_can_work() -> None:
    """Those that are mounted are accepted by the program."""
    texts = [(DEPLOY / "compose" / "tollkeeper.toml").read_text()]
    texts.append(KUBERNETES["ConfigMap", "tollkeeper"]["data"]["tollkeeper.toml"])
    for text in texts:
        uncommented = re.sub(r"^# (?=\[|\w+ = )", "", text, flags=re.MULTILINE)
        for version in (text, uncommented):
            settings = convert(tomllib.loads(version))
            check(settings)
            assert settings.providers


def test_file_systems_in_memory_take_no_owner() -> None:
    """Docker would make one that belongs to a user; podman refuses `uid` and `gid`, and starts nothing."""
    mounts = [
        mount.partition(":")[::2] for service in COMPOSE["services"].values() for mount in service.get("tmpfs", ())
    ]
    assert ("/tmp", "") in mounts
    assert {options for _, options in mounts} <= {"", "mode=1777"}


def test_mounted_files_exist() -> None:
    for service in COMPOSE["services"].values():
        for volume in service.get("volumes", ()):
            source = volume.partition(":")[0]
            if source.startswith("."):
                assert (DEPLOY / "compose" / source).exists(), source
            else:
                assert source in COMPOSE["volumes"], source


def test_compose_file_against_its_schema() -> None:
    schema = json.loads(files("check_jsonschema").joinpath("builtin_schemas/vendor/compose-spec.json").read_text())
    jsonschema.validate(COMPOSE, schema)
    broken = {**COMPOSE, "services": {"x": {"image": 1}}}
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(broken, schema)


def test_prometheus_configuration(tmp_path: Path) -> None:
    promtool = shutil.which("promtool")
    assert promtool, "promtool is missing: run `make servers`"
    shutil.copy(DEPLOY / "compose" / "prometheus.yml", tmp_path)
    shutil.copy(DEPLOY / "prometheus" / "alerts.yml", tmp_path)
    command = [promtool, "check", "config", "prometheus.yml"]
    checked = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stdout + checked.stderr


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd-analyze is not installed")
def test_systemd_unit(tmp_path: Path) -> None:
    """systemd understands every line, and finds it hardened."""
    for name in ("tollkeeper.service", "tollkeeper.socket"):
        unit = (DEPLOY / "systemd" / name).read_text()
        (tmp_path / name).write_text(re.sub(r"^ExecStart=\S+", "ExecStart=/bin/true", unit, flags=re.MULTILINE))
    units = [str(tmp_path / name) for name in ("tollkeeper.socket", "tollkeeper.service")]
    command = ["systemd-analyze", "verify", *units]
    checked = subprocess.run(command, capture_output=True, text=True, check=False)
    ours = [line for line in checked.stderr.splitlines() if "tollkeeper" in line]
    assert (checked.returncode, ours) == (0, []), checked.stderr


def test_no_registry_is_named() -> None:
    """Images by their plain names: where they come from is the operator's choice."""
    named = re.findall(r"^(?:FROM|ARG PYTHON_IMAGE=)\s*(\S+)", DOCKERFILE, re.MULTILINE)
    named += [service["image"] for service in COMPOSE["services"].values()]
    assert all("." not in image.partition("/")[0] or "/" not in image for image in named), named
