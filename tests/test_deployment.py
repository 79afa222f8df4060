"""docker-compose.yml, Dockerfile, Procfile and .env.example fit the code; no Docker engine is needed to see it."""

from __future__ import annotations

import fnmatch
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from urllib.parse import urlsplit

import click
import pytest

from proj.management import CONSUMER_TIMEOUT, management_url
from tests import deployment
from tests.deployment import ROOT, Compose


def validate(file: Path) -> subprocess.CompletedProcess[str]:
    """Check a file against the compose specification's own schema."""
    command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.compose-spec", str(file)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60)


def test_compose_file_follows_the_specification() -> None:
    ended = validate(ROOT / "docker-compose.yml")
    assert ended.returncode == 0, ended.stdout


def test_mistyped_key_breaks_the_specification(tmp_path: Path) -> None:
    broken = tmp_path / "docker-compose.yml"
    broken.write_text((ROOT / "docker-compose.yml").read_text().replace("stop_grace_period", "stop_grace_priod"))
    ended = validate(broken)
    assert ended.returncode != 0
    assert "stop_grace_priod" in ended.stdout


def test_compose_file_fits_the_code() -> None:
    assert list(deployment.problems(deployment.compose())) == []


def _change(path: str, value: object) -> Callable[[Compose], None]:
    def change(compose: Compose) -> None:
        *parents, last = path.split("/")
        for key in parents:
            compose = compose[key]
        compose[last] = value

    return change


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (_change("services/worker/command", ["celery", "-A", "proj", "wroker"]), "worker: its command: No such"),
        (_change("services/worker/command", ["celery", "-A", "proj", "worker", "--cuncurrency=1"]), "No such option"),
        (_change("services/policy/command", ["celery", "-A", "proj", "policy", "put"]), "policy: its command"),
        (_change("services/flower/command", ["sh", "-c", "celery flower"]), "flower: its command: expected celery"),
        (_change("services/flower/build", "deploy"), "flower: no Dockerfile"),
        (_change("services/worker/environment", {"CELERY_BROKER": "x"}), "worker: nothing reads CELERY_BROKER"),
        (_change("services/flower/environment", {"FLOWER_ADRESS": "x"}), "flower: nothing reads FLOWER_ADRESS"),
        (_change("services/worker/environment", {"PROJ_HEALTH_FILE": "/run/alive"}), "cannot write /run/alive"),
        (_change("services/flower/ports", ["0.0.0.0:5555:5555"]), "flower: 0.0.0.0:5555:5555 is open"),
        (_change("services/flower/ports", ["127.0.0.1:5555:5556"]), "flower: nothing listens on 5556"),
        (lambda compose: compose["services"]["rabbitmq"].pop("healthcheck"), "rabbitmq has no health check"),
        (_change("services/rabbitmq/volumes", ["./deploy/rabbit.conf:/etc/x"]), "mounts ./deploy/rabbit.conf"),
        (_change("services/rabbitmq/volumes", ["data:/var/lib/rabbitmq"]), "the volume data is not declared"),
        (_change("services/rabbitmq/environment", {"RABBITMQ_DEFAULT_PASS": "guest"}), "guest is everybody's"),
        (_change("services/rabbitmq/environment", {"A": "${PASSWORD:?}"}), "PASSWORD is not in .env.example"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_found(change: Callable[[Compose], object], problem: str) -> None:
    compose = deployment.compose()
    change(compose)
    assert problem in "\n".join(deployment.problems(compose))


def test_workers_start_only_where_the_policy_is_in_force() -> None:
    worker = deployment.compose()["services"]["worker"]
    assert worker["depends_on"]["policy"]["condition"] == "service_completed_successfully"


def test_workers_can_be_scaled() -> None:
    worker = deployment.compose()["services"]["worker"]
    assert not {"container_name", "hostname", "ports"} & set(worker)


@pytest.mark.parametrize("name", ["RABBITMQ_DEFAULT_USER", "RABBITMQ_DEFAULT_PASS", "FLOWER_BASIC_AUTH"])
def test_missing_credentials_are_refused(name: str) -> None:
    assert f"${{{name}:?" in (ROOT / "docker-compose.yml").read_text()


def test_both_addresses_are_of_the_same_rabbitmq() -> None:
    environment = deployment.compose()["services"]["worker"]["environment"]
    # urlsplit takes the colons of ${NAME:?…} for ports.
    values = {
        key: value.replace("${RABBITMQ_DEFAULT_USER", "u").replace("${", "p") for key, value in environment.items()
    }
    broker, management = (values[name].rpartition("@")[2] for name in ("CELERY_BROKER_URL", "PROJ_MANAGEMENT_URL"))
    guessed = urlsplit(management_url({"broker_url": f"amqp://u:p@{broker}"}))
    assert f"{guessed.netloc.rpartition('@')[2]}{guessed.path}" == management
    assert guessed.hostname in deployment.compose()["services"]


def test_flower_listens_where_its_port_and_health_check_look() -> None:
    from flower.options import default_options

    flower = deployment.compose()["services"]["flower"]
    port = default_options.as_dict()["port"]
    assert f"127.0.0.1:{port}/healthcheck" in flower["healthcheck"]["test"][-1]
    assert [mapping.split(":")[-1] for mapping in flower["ports"]] == [str(port)]


@pytest.mark.parametrize(("age", "healthy"), [(0, True), (60, False), (None, False)])
def test_worker_is_healthy_while_its_file_is_fresh(tmp_path: Path, age: int | None, healthy: bool) -> None:
    kind, command = deployment.compose()["services"]["worker"]["healthcheck"]["test"]
    assert kind == "CMD-SHELL"
    file = tmp_path / "alive"
    if age is not None:
        file.touch()
        os.utime(file, (time.time() - age,) * 2)
    environment = {**os.environ, "PROJ_HEALTH_FILE": str(file)}
    ended = subprocess.run(
        ["/bin/sh", "-c", command.replace("$$", "$")], env=environment, capture_output=True, timeout=10
    )
    assert (ended.returncode == 0) is healthy, ended.stderr


def test_image_runs_a_real_command_as_process_1() -> None:
    command = deployment.image_command()
    assert deployment.parse(command).command.name == "worker"


def test_image_does_not_run_as_root() -> None:
    users = [line.split()[1] for line in deployment.dockerfile() if line.startswith("USER")]
    assert users
    assert int(users[-1].split(":")[0]) > 0


def test_build_context_has_what_the_dockerfile_copies() -> None:
    allowed = [
        line.removeprefix("!") for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")
    ]
    for source in deployment.copied():
        assert (ROOT / source).exists(), source
        assert any(fnmatch.fnmatch(source.removeprefix("./"), pattern) for pattern in allowed), source


@pytest.mark.parametrize("name", ["broker", "worker", "flower"])
def test_procfile_runs_real_commands(name: str) -> None:
    commands = deployment.procfile()[name]
    assert [deployment.parse(command).command.name for command in commands][-1] == name


def test_mistyped_command_is_found() -> None:
    with pytest.raises(click.UsageError, match="No such command 'brokre'"):
        deployment.parse(["celery", "-A", "proj", "brokre"])


def test_each_name_of_the_code_is_in_env_example() -> None:
    assert deployment.names_read_by_code() - set(deployment.env_example()) == set()


def test_each_name_in_env_example_is_read() -> None:
    known = deployment.names_read_by_code() | deployment.interpolated(deployment.compose())
    unknown = set(deployment.env_example()) - known
    assert {name for name in unknown if not deployment._is_flower_option(name)} == set()


def test_env_example_has_no_password() -> None:
    example = deployment.env_example()
    assert (example["RABBITMQ_DEFAULT_PASS"], example["FLOWER_BASIC_AUTH"]) == ("", "")


def test_rabbitmq_conf_agrees_with_the_policy() -> None:
    lines = [line.partition("=") for line in (ROOT / "deploy/rabbitmq.conf").read_text().splitlines()]
    settings = {key.strip(): value.strip() for key, equals, value in lines if equals and not key.startswith("#")}
    assert settings["consumer_timeout"] == str(CONSUMER_TIMEOUT)
    assert settings["default_queue_type"] == "quorum"
