"""What the deployment files say, read as Docker, honcho and a shell read them."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
from celery.bin.base import CLIContext
from celery.bin.celery import celery
from click_plugins.core import BrokenCommand
from ruamel.yaml import YAML

from proj.celery import app

ROOT = Path(__file__).parent.parent
Compose = dict[str, Any]


def compose() -> Compose:
    return YAML(typ="safe").load(ROOT / "docker-compose.yml")


def dockerfile() -> list[str]:
    """The instructions, one a string, without comments."""
    text = re.sub(r"^#.*\n", "", (ROOT / "Dockerfile").read_text(), flags=re.MULTILINE).replace("\\\n", " ")
    return [line for line in text.splitlines() if line.strip()]


def image_command() -> list[str]:
    """The image's CMD; a ValueError unless it is in the exec form."""
    return json.loads(next(line for line in reversed(dockerfile()) if line.startswith("CMD")).removeprefix("CMD"))


def copied() -> list[str]:
    """What the Dockerfile takes from the build context."""
    lines = [shlex.split(line)[1:-1] for line in dockerfile() if line.startswith("COPY")]
    return [source for line in lines if not line[0].startswith("--from") for source in line]


def procfile() -> dict[str, list[list[str]]]:
    """The commands of each process."""
    lines = [line.partition(":") for line in (ROOT / "Procfile").read_text().splitlines()]
    return {name: [shlex.split(part.removeprefix("exec ")) for part in re.split(r"\s*&&\s*", rest.strip())]
            for name, _, rest in lines}  # fmt: skip


def env_example() -> dict[str, str]:
    """Names and values of .env.example, those behind a # too."""
    return dict(re.findall(r"^(?:# )?([A-Z][A-Z_]*)=(.*)$", (ROOT / ".env.example").read_text(), re.MULTILINE))


def our_services(compose: Compose) -> dict[str, Any]:
    return {name: service for name, service in compose["services"].items() if "build" in service}


def interpolated(compose: Compose) -> set[str]:
    """The names that compose takes from .env."""
    return set(re.findall(r"(?<!\$)\$\{([A-Z_]+)", json.dumps(compose)))


def names_read_by_code() -> set[str]:
    """Names of environment variables of ours, and Celery's, in the source."""
    sources = "\n".join(path.read_text() for path in (ROOT / "proj").rglob("*.py"))
    return set(re.findall(r"""["']((?:PROJ|CELERY)_[A-Z_]+)["']""", sources))


def parse(command: list[str]) -> click.Context:
    """Parse a `celery …` command line as celery does, without running it. Raises click.UsageError."""
    program, option, name, *arguments = command
    if (program, option, name) != ("celery", "-A", "proj"):
        raise click.UsageError(f"expected celery -A proj, got: {' '.join(command)}")
    context = click.Context(celery, obj=CLIContext(app=app, no_color=True, workdir=".", quiet=True))
    return _descend(celery, arguments, context)


def _descend(group: click.Group, arguments: list[str], parent: click.Context) -> click.Context:
    name, command, rest = group.resolve_command(parent, arguments)
    if isinstance(command, BrokenCommand):
        raise click.UsageError(command.help)
    if not isinstance(command, click.Group):
        return command.make_context(name, rest, parent=parent)
    return _descend(command, rest, click.Context(command, info_name=name, parent=parent, obj=parent.obj))


def problems(compose: Compose) -> Iterator[str]:
    """Yield what does not fit the code, one sentence each."""
    services = compose["services"]
    for name, service in our_services(compose).items():
        try:
            parse(service["command"])
        except click.ClickException as error:
            yield f"{name}: its command: {error.format_message()}"
        if not (ROOT / service["build"] / "Dockerfile").is_file():
            yield f"{name}: no Dockerfile in its build context {service['build']}"
        for variable in set(service["environment"]) - names_read_by_code():
            if not _is_flower_option(variable):
                yield f"{name}: nothing reads {variable}"
        health_file = service["environment"].get("PROJ_HEALTH_FILE")
        if health_file and str(Path(health_file).parent) not in service["tmpfs"]:
            yield f"{name}: cannot write {health_file}: no tmpfs there"
    for name, service in services.items():
        yield from _port_problems(name, service)
        for other, wanted in service.get("depends_on", {}).items():
            if wanted["condition"] == "service_healthy" and "healthcheck" not in services[other]:
                yield f"{name}: waits for {other} to be healthy, but {other} has no health check"
        for mount in service.get("volumes", []):
            source = mount.split(":")[0]
            if source.startswith(".") and not (ROOT / source).is_file():
                yield f"{name}: mounts {source}, which is missing"
            if not source.startswith(".") and source not in compose["volumes"]:
                yield f"{name}: the volume {source} is not declared"
    for variable in interpolated(compose) - set(env_example()):
        yield f"{variable} is not in .env.example"
    if "guest" in json.dumps(compose):
        yield "guest is everybody's password"


def _port_problems(name: str, service: dict[str, Any]) -> Iterator[str]:
    served = {"rabbitmq": {"5672", "15672"}, "flower": {"5555"}}
    for port in service.get("ports", []):
        address, _, inside = port.split(":")
        if address != "127.0.0.1":
            yield f"{name}: {port} is open to other machines"
        if inside not in served.get(name, set()):
            yield f"{name}: nothing listens on {inside}"


def _is_flower_option(variable: str) -> bool:
    from flower.options import default_options

    return variable.startswith("FLOWER_") and variable.removeprefix("FLOWER_").lower() in default_options
