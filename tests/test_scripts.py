"""What surrounds the code: scripts, image, compose file, lock files and the README's settings."""

from __future__ import annotations

import os
import re
import shlex
import stat
import subprocess
import sys
import sysconfig
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from fastapi.routing import APIRoute
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from typer.testing import CliRunner

from store_credit import __version__, database, health, settings
from store_credit.cli.main import app
from store_credit.cli.workers import GRACE_SECONDS, KEEP_ALIVE_SECONDS
from store_credit.settings import PREFIX, Settings

PROJECT = Path(__file__).parents[1]
SETTINGS = {f"{PREFIX}{name.upper()}" for name in Settings.model_fields}
LOCKS = ("requirements.lock", "requirements-dev.lock")
COMMAND_SECONDS_MAX = 60


def shell_scripts() -> list[Path]:
    found = [*(PROJECT / "scripts").iterdir(), PROJECT / ".ci" / "run"]
    return [path for path in found if path.is_file() and path.read_bytes().startswith(b"#!/bin/sh\n")]


# scripts


def test_the_scripts_that_are_told_of_exist() -> None:
    named = set(re.findall(r"\bscripts/[a-z]+\b", (PROJECT / "README.md").read_text()))
    assert {"scripts/run", "scripts/test"} <= named
    assert named <= {str(path.relative_to(PROJECT)) for path in shell_scripts()}


@pytest.mark.parametrize("path", shell_scripts(), ids=lambda path: path.name)
def test_a_script_is_valid_and_can_be_executed(path: Path) -> None:
    checked = subprocess.run(["sh", "-n", str(path)], capture_output=True, text=True, check=False)
    assert (checked.returncode, checked.stderr) == (0, "")
    assert path.stat().st_mode & stat.S_IXUSR
    assert "set -eu\n" in path.read_text(), "a script ends with its first failure"


FAKE_PYTHON = """#!/bin/sh
echo "$*" >> "$CALLS"
case "$*" in
    *sys.version_info*) exit "${TOO_OLD:-0}" ;;
    *sysconfig*) mkdir -p site; echo site ;;
    --version) echo "Python 3.12.0" ;;
    "-m venv .venv") mkdir -p .venv/bin; cp "$0" .venv/bin/python ;;
esac
"""


class Checkout:
    """A copy of what `scripts/setup` needs, with a Python that only notes how it is called."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "a folder with blanks"
        (self.folder / "scripts").mkdir(parents=True)
        (self.folder / "scripts" / "setup").write_bytes((PROJECT / "scripts" / "setup").read_bytes())
        (self.folder / "scripts" / "setup").chmod(0o755)
        for lock in LOCKS:
            (self.folder / lock).write_text(f"contents of {lock}\n")
        self._calls = folder / "calls"
        self._bin = folder / "bin"
        self._bin.mkdir()
        for name in ("python3", "python", *(f"python3.{minor}" for minor in range(11, 20))):
            (self._bin / name).write_text(FAKE_PYTHON)
            (self._bin / name).chmod(0o755)

    def set_up(self, *arguments: str, **more: str) -> subprocess.CompletedProcess[str]:
        env = {"PATH": f"{self._bin}:{os.environ['PATH']}", "CALLS": str(self._calls)} | more
        return subprocess.run(
            ["scripts/setup", *arguments],
            cwd=self.folder,
            env=env,
            capture_output=True,
            text=True,
            timeout=COMMAND_SECONDS_MAX,
            check=False,
        )

    def installed(self) -> list[str]:
        """The lock files that pip was called with since this was last asked."""
        calls = self._calls.read_text().splitlines()
        self._calls.unlink()
        pip = [shlex.split(call) for call in calls if call.startswith("-m pip install ")]
        assert all("--require-hashes" in call for call in pip)
        return [call[call.index("-r") + 1] for call in pip]


@pytest.fixture
def checkout(tmp_path: Path) -> Checkout:
    return Checkout(tmp_path)


@pytest.mark.parametrize("name", ["bench.py", "bench_import.py", "growth.py"])
def test_what_measures_can_be_started(name: str) -> None:
    """All that it is made of is there; the measuring itself takes minutes."""
    ended = subprocess.run(
        [sys.executable, PROJECT / "scripts" / name, "--help"], capture_output=True, text=True, check=False
    )
    assert (ended.returncode, ended.stderr) == (0, "")
    assert "--seconds" in ended.stdout


def test_setup_installs_the_locked_requirements_and_the_command(checkout: Checkout) -> None:
    assert checkout.set_up().returncode == 0
    assert checkout.installed() == ["requirements.lock"]
    assert (checkout.folder / "site" / "store-credit.pth").read_text() == f"{checkout.folder}/src\n"
    command = checkout.folder / ".venv" / "bin" / "store-credit"
    assert command.stat().st_mode & stat.S_IXUSR
    assert str(checkout.folder) in command.read_text()


def test_setup_for_developing_installs_the_development_requirements(checkout: Checkout) -> None:
    assert checkout.set_up("dev").returncode == 0
    assert checkout.installed() == ["requirements-dev.lock"]


@pytest.mark.parametrize("arguments", [(), ("dev",)])
def test_setup_does_nothing_when_all_is_there(checkout: Checkout, arguments: tuple[str, ...]) -> None:
    checkout.set_up(*arguments)
    checkout.installed()
    again = checkout.set_up(*arguments)
    assert (again.returncode, again.stdout, again.stderr) == (0, "", "")
    assert checkout.installed() == []


def test_setup_installs_again_when_the_lock_changed(checkout: Checkout) -> None:
    checkout.set_up()
    checkout.installed()
    (checkout.folder / "requirements.lock").write_text("something else\n")
    checkout.set_up()
    assert checkout.installed() == ["requirements.lock"]


def test_setup_refuses_an_old_python(checkout: Checkout) -> None:
    refused = checkout.set_up(TOO_OLD="1")
    assert refused.returncode == 1
    assert refused.stderr == "store-credit needs Python 3.11 or later.\n"
    assert not (checkout.folder / ".venv").exists()


# lock files


def locked(lock: str) -> dict[str, str]:
    """Versions by name."""
    requirements = [
        re.fullmatch(r"([A-Za-z0-9._-]+)==([^ ;]+)(?: ; .*)?", requirement)
        for requirement, _ in entries(lock)
    ]
    assert all(requirements), f"{lock} holds something that is no exact version"
    return {canonicalize_name(found[1]): found[2] for found in requirements if found}


def entries(lock: str) -> Iterator[tuple[str, list[str]]]:
    """Each requirement of a lock file with its hashes."""
    text = re.sub(r"^\s*#.*\n", "", (PROJECT / lock).read_text(), flags=re.M).replace("\\\n", " ")
    for line in text.splitlines():
        requirement, *hashes = re.split(r"\s+--hash=", line.strip())
        yield requirement.strip(), hashes


@pytest.mark.parametrize("lock", LOCKS)
def test_every_locked_requirement_has_hashes(lock: str) -> None:
    found = list(entries(lock))
    assert found
    for requirement, hashes in found:
        assert hashes, requirement
        assert all(re.fullmatch(r"sha256:[0-9a-f]{64}", one) for one in hashes), requirement


@pytest.mark.parametrize("lock", LOCKS)
def test_a_lock_names_no_place(lock: str) -> None:
    text = (PROJECT / lock).read_text()
    assert not re.search(r"://|^--|^-[a-z] | @ |file:", text, re.M)


def test_the_locks_hold_what_the_project_asks_for() -> None:
    project: dict[str, Any] = tomllib.loads((PROJECT / "pyproject.toml").read_text())["project"]
    running, developing = (locked(lock) for lock in LOCKS)
    for asked in map(Requirement, project["dependencies"]):
        assert running[canonicalize_name(asked.name)] in asked.specifier
    for asked in map(Requirement, project["optional-dependencies"]["dev"]):
        assert developing[canonicalize_name(asked.name)] in asked.specifier
    assert running.items() <= developing.items(), "what is tested is what runs"


# image


def instructions() -> list[tuple[str, str]]:
    """The Dockerfile's instructions, continued lines put together."""
    text = re.sub(r"^#.*\n", "", (PROJECT / "Dockerfile").read_text(), flags=re.M)
    lines = text.replace("\\\n", " ").splitlines()
    return [(name, rest) for name, _, rest in (line.partition(" ") for line in lines if line)]


def instruction(name: str) -> str:
    """The last instruction of this name: it is the image's own stage that counts."""
    return [rest for found, rest in instructions() if found == name][-1]


def exec_form(text: str) -> list[str]:
    found: list[str] = yaml.safe_load(text)
    return found


def test_what_the_image_copies_exists_and_is_not_ignored() -> None:
    sources = [
        rest.split()[:-1] for name, rest in instructions() if name == "COPY" and "--from" not in rest
    ]
    ignored, *admitted = (PROJECT / ".dockerignore").read_text().split()
    assert ignored == "*"
    for source in (one for several in sources for one in several):
        assert (PROJECT / source).exists()
        assert f"!{source.rstrip('/')}" in admitted


def test_the_commands_that_build_the_image_make_a_working_one(tmp_path: Path) -> None:
    """All but pip's own work: the requirements are taken from where the tests run."""
    venv = tmp_path / "venv"
    (run,) = [rest for name, rest in instructions() if name == "RUN" and "-m venv" in rest]
    pip = re.search(r"python -m pip [^&]*", run)
    assert pip is not None
    assert {"--require-hashes", "--only-binary", "/build/requirements.lock"} <= set(pip[0].split())
    built = run.replace(pip[0], "true ").replace("/venv", str(venv)).replace("/app", str(PROJECT))
    built = re.sub(r"(?<![\w/.-])python\b", sys.executable, built)
    subprocess.run(["sh", "-eu", "-c", built], check=True, timeout=COMMAND_SECONDS_MAX)
    site = next(venv.glob("lib/python*/site-packages"))
    (site / "tests.pth").write_text(sysconfig.get_path("purelib") + "\n")
    started = subprocess.run(
        [venv / "bin" / "store-credit", "--version"],
        capture_output=True,
        text=True,
        env={},
        timeout=COMMAND_SECONDS_MAX,
        check=False,
    )
    assert (started.stdout, started.stderr) == (f"{__version__}\n", "")


def assert_is_command(arguments: list[str]) -> None:
    """The command exists, with every option that is given."""
    name, *rest = arguments
    help_ = CliRunner(env={"COLUMNS": "200"}).invoke(app, [name, "--help"])
    assert help_.exit_code == 0, help_.output
    for option in (one for one in rest if one.startswith("--")):
        assert option in help_.output


def test_the_image_serves_as_nobody_in_particular() -> None:
    assert exec_form(instruction("ENTRYPOINT")) == ["store-credit"]
    serve = exec_form(instruction("CMD"))
    assert serve[0] == "serve"
    assert_is_command(serve)
    assert serve[serve.index("--port") + 1] == instruction("EXPOSE")
    assert int(instruction("USER")) > 0


def test_the_image_checks_its_health_where_it_is_told() -> None:
    check = exec_form(instruction("HEALTHCHECK").partition(" CMD ")[2])
    assert check[0] == "python"
    compile(check[2], "HEALTHCHECK", "exec")
    paths = {route.path for route in health.router.routes if isinstance(route, APIRoute)}
    (asked,) = re.findall(r"http://127\.0\.0\.1:(\d+)(/\w+)", check[2])
    assert asked[0] == instruction("EXPOSE")
    assert asked[1] in paths


def test_base_images_are_named_with_their_version(services: dict[str, Any]) -> None:
    """With that of Debian too: the tag alone would move from one to the next."""
    named = [rest.split()[0] for name, rest in instructions() if name == "FROM"]
    assert len(set(named)) == 1, "what is built runs where it was built"
    for image in (*named, services["database"]["image"]):
        assert re.fullmatch(r"[a-z]+:\d+(\.\d+)?(-slim)?-trixie", image)


def test_what_the_image_runs_becomes_its_first_process() -> None:
    """Else the signal to stop would reach a shell."""
    (run,) = [rest for name, rest in instructions() if name == "RUN" and "/venv/bin/store-credit" in rest]
    assert r"\nexec " in run
    assert instruction("ENTRYPOINT").startswith("[")


def test_the_image_holds_no_settings() -> None:
    assert PREFIX not in (PROJECT / "Dockerfile").read_text()


# compose file


@pytest.fixture(scope="module")
def services() -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load((PROJECT / "docker-compose.yml").read_text())["services"]
    return found


def of_project(services: dict[str, Any]) -> dict[str, Any]:
    return {name: service for name, service in services.items() if "build" in service}


def test_compose_gives_only_settings_that_exist(services: dict[str, Any]) -> None:
    for service in of_project(services).values():
        names = {name for name in service["environment"] if name.startswith(PREFIX)}
        assert names
        assert names <= SETTINGS


def test_compose_gives_every_setting_that_has_no_default(services: dict[str, Any]) -> None:
    needed = {"CALLOUT_USERNAME", "CALLOUT_PASSWORD", "MERCHANT_USERNAME", "MERCHANT_PASSWORD"}
    wanted = {f"{PREFIX}{name}" for name in needed | {"WEBHOOK_SECRETS", "DATABASE_URL"}}
    assert wanted <= set(services["service"]["environment"])


def test_compose_takes_every_secret_from_the_environment(services: dict[str, Any]) -> None:
    for service in services.values():
        for name, value in service["environment"].items():
            if re.search("PASSWORD|SECRET", name):
                assert re.fullmatch(r"\$\{[A-Z_]+:\?[^}]+\}", value), "what is missing stops the start"


def test_compose_migrates_once_before_it_serves(services: dict[str, Any]) -> None:
    migrate, service = services["migrate"], services["service"]
    assert migrate["command"] == ["migrate"]
    assert_is_command(migrate["command"])
    assert migrate["restart"] == "no"
    assert service["depends_on"] == {"migrate": {"condition": "service_completed_successfully"}}
    assert migrate["depends_on"] == {"database": {"condition": "service_healthy"}}
    url = f"{PREFIX}DATABASE_URL"
    assert migrate["environment"][url] == service["environment"][url]


def test_compose_takes_another_database_after_a_restore(services: dict[str, Any]) -> None:
    database = services["database"]["environment"]
    url = services["service"]["environment"][f"{PREFIX}DATABASE_URL"]
    place = f"postgresql://{database['POSTGRES_USER']}@database"
    assert url == f"{place}/${{DATABASE_NAME:-{database['POSTGRES_DB']}}}"


def test_compose_waits_for_the_database_that_stays(services: dict[str, Any]) -> None:
    """While it is being set up, PostgreSQL runs for a moment without listening to the network."""
    check = services["database"]["healthcheck"]["test"]
    assert check[:2] == ["CMD", "pg_isready"]
    assert "--host" in check


def test_compose_gives_the_service_only_what_it_needs(services: dict[str, Any]) -> None:
    for service in of_project(services).values():
        assert service["read_only"] is True
        assert service["cap_drop"] == ["ALL"]
        assert "no-new-privileges:true" in service["security_opt"]
    assert [place.partition(":")[0] for place in services["service"]["tmpfs"]] == ["/tmp"]


def test_compose_bounds_every_service(services: dict[str, Any]) -> None:
    for service in services.values():
        assert {"mem_limit", "pids_limit"} <= service.keys()
        assert service["cap_drop"] == ["ALL"]
        assert service["security_opt"] == ["no-new-privileges:true"]
        assert {"max-size", "max-file"} <= service["logging"]["options"].keys()
        assert service["restart"] in ("no", "unless-stopped")


def test_compose_shows_the_database_to_nobody_else(services: dict[str, Any]) -> None:
    networks = yaml.safe_load((PROJECT / "docker-compose.yml").read_text())["networks"]
    assert "ports" not in services["database"]
    assert [networks[name]["internal"] for name in services["database"]["networks"]] == [True]
    assert all("inside" in service["networks"] for service in services.values())


def test_compose_shows_the_service_to_this_machine_alone(services: dict[str, Any]) -> None:
    assert all(port.startswith("127.0.0.1:") for port in services["service"]["ports"])


def test_compose_tells_processes_to_end(services: dict[str, Any]) -> None:
    """The first process of a container ignores signals that it does not handle."""
    assert all(service["init"] is True for service in of_project(services).values())


def test_compose_gives_running_requests_time_to_finish(services: dict[str, Any]) -> None:
    assert settings.duration(services["service"]["stop_grace_period"]).total_seconds() > GRACE_SECONDS


# README, and the page for operations


def test_operations_are_told_the_times_that_are_set() -> None:
    page = (PROJECT / "docs" / "operations.md").read_text()
    deadline = Settings.model_fields["deadline"].get_default()
    seconds = {
        "`lock_timeout`": database.LOCK_TIMEOUT_MS / 1_000,
        "`statement_timeout`, `idle_in_transaction_session_timeout`": database.STATEMENT_TIMEOUT_MS / 1_000,
        "to connect": database.CONNECT_TIMEOUT_SECONDS,
        "to wait for a connection of the pool": database.POOL_TIMEOUT_SECONDS,
        "a request waits for the ledger (`STORE_CREDIT_DEADLINE`)": deadline.total_seconds(),
    }
    for what, value in seconds.items():
        assert f"| {what} | {value:g} s |" in page
    assert f"shorter than {KEEP_ALIVE_SECONDS} s" in page
    assert f"(at most {GRACE_SECONDS} s)" in page


def test_the_readme_tells_every_setting_and_no_other() -> None:
    text = (PROJECT / "README.md").read_text()
    pairs = re.sub(r"`(\w+)_USERNAME`, `_PASSWORD`", r"`\1_USERNAME`, `\1_PASSWORD`", text)
    assert set(re.findall(rf"\b{PREFIX}[A-Z_]+\b", pairs)) == SETTINGS


def test_the_defaults_that_the_readme_tells_are_the_defaults() -> None:
    rows = re.findall(rf"^\| `{PREFIX}(\w+)` \| `([^`]+)` \|", (PROJECT / "README.md").read_text(), re.M)
    assert len(rows) >= 8
    for name, default in rows:
        field = Settings.model_fields[name.lower()].get_default()
        assert getattr(settings.load(**{name.lower(): default}), name.lower()) == field
