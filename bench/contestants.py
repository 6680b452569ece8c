"""The contestants: listingd and the peers of the shared queue benchmark, each a program that speaks bench/lib's contract.

The peers' programs come from the shared benchmark (HARNESS/peers); what they run on is installed once into a
cache directory, a virtual environment for each and one node_modules:

    PEERS_DIR/lib, peers, limit   copied from HARNESS at each start
    PEERS_DIR/venv/NAME           PEERS_DIR/node
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).parent.parent
HARNESS = REPOSITORY.parent / "shared" / "bench"
PEERS_DIR = Path.home() / ".cache" / "listingd-bench"
_INSTALL_S = 900


class Skipped(Exception):
    """A contestant cannot take part; the text says why."""


@dataclass(frozen=True, slots=True)
class Peer:
    """packages: of pip, or of npm with node. jobs: of a drain, as the slow ones would take minutes over 20 000."""

    packages: tuple[str, ...]
    node: bool = False
    jobs: int | None = None


_NODE = ("node@24", "graphile-worker@0.18.0", "pg-boss@12.38.0", "pg")
_PSYCOPG = "psycopg[binary,pool]"
PEERS = {
    "graphile": Peer(_NODE, node=True),
    "pgboss": Peer(_NODE, node=True),
    "pgqueuer": Peer(("pgqueuer[asyncpg]==1.6.0", "uvloop")),
    "chancy": Peer(("chancy[cli]==0.26.0", _PSYCOPG, "uvloop"), jobs=10_000),
    "oban": Peer(("oban==0.7.0", "uvloop"), jobs=5_000),
    "dbos": Peer(("dbos==3.4.0", "uvloop"), jobs=2_000),
    "saq": Peer(("saq[postgres,hiredis]==0.26.4", _PSYCOPG, "uvloop"), jobs=2_000),
    "procrastinate": Peer(("procrastinate==3.10.0", _PSYCOPG, "uvloop"), jobs=2_000),
}
FAST = ("graphile", "pgboss", "pgqueuer")
"""The peers that are measured as often as we are; the others once."""


@dataclass(frozen=True, slots=True)
class Contestant:
    """A program that can be run. info: what it says about itself (benchlib's `info`)."""

    name: str
    command: tuple[str, ...]
    environment: dict[str, str]
    jobs: int | None = None
    info: dict[str, Any] = field(default_factory=dict)

    @property
    def title(self) -> str:
        return str(self.info["name"])

    @property
    def versions(self) -> str:
        ran_by = str(self.info.get("python") or "")
        runtime = ran_by if ran_by.startswith("node") else f"python {ran_by}"
        return ", ".join([*(f"{k} {v}" for k, v in self.info["versions"].items()), runtime])


def listingd(port: int, scratch: Path, **options: Any) -> Contestant:
    """Our own daemon, its state below scratch. options: tunables of peer_listingd.py."""
    environment = os.environ | {
        "LISTINGD_BENCH_ROOT": str(REPOSITORY),
        "PYTHONPATH": str(REPOSITORY / "bench" / "lib"),
        "BENCH_OPT": json.dumps({"port": port, **options}),
        "TMPDIR": str(scratch),
    }
    for name in [n for n in environment if n.startswith("LISTINGD_") and n != "LISTINGD_BENCH_ROOT"]:
        del environment[name]  # an operator's own settings are not measured
    program = str(REPOSITORY / "bench" / "peer_listingd.py")
    return _ask("listingd", (sys.executable, "-P", program), environment)


def prepare_harness(harness: Path, peers_dir: Path) -> Path:
    """Bring the shared programs to where they can be run. Errors: Skipped."""
    if not (harness / "peers").is_dir():
        raise Skipped(f"the shared benchmark is not there ({harness.name}/peers)")
    peers_dir.mkdir(parents=True, exist_ok=True)
    for part in ("lib", "peers", "limit"):
        shutil.copytree(harness / part, peers_dir / part, dirs_exist_ok=True, copy_function=shutil.copyfile)
    return peers_dir


def prepare_peer(name: str, peers_dir: Path) -> Contestant:
    """Install what the peer runs on, when it is not there yet. Errors: Skipped."""
    peer = PEERS[name]
    environment = os.environ | {
        "PYTHONPATH": str(peers_dir / "lib"),
        "NODE_ENV": "production",
        "NO_LOG_SUCCESS": "1",
    }
    if peer.node:
        node = _install_node(peers_dir / "node")
        return _ask(name, (str(node), str(peers_dir / "peers" / f"{name}.mjs")), environment, peer.jobs)
    python = _install_python(peers_dir / "venv" / name, peer.packages)
    # -P: a peer's file may carry its library's name
    return _ask(name, (str(python), "-P", str(peers_dir / "peers" / f"{name}.py")), environment, peer.jobs)


def _ask(
    name: str, command: tuple[str, ...], environment: dict[str, str], jobs: int | None = None
) -> Contestant:
    answer = _run([*command, "info"], name, env=environment)
    return Contestant(name, command, environment, jobs, json.loads(answer.strip().splitlines()[-1]))


def _install_node(directory: Path) -> Path:
    program = directory / "node_modules" / ".bin" / "node"
    if not _is_installed(directory, _NODE):
        npm = shutil.which("npm")
        if npm is None:
            raise Skipped("npm is not installed")
        directory.mkdir(parents=True, exist_ok=True)
        (directory / "package.json").write_text('{"private": true}\n')
        _run([npm, "install", "--silent", "--no-audit", "--no-fund", *_NODE], "npm", cwd=directory)
        _note_installed(directory, _NODE)
    return program


def _install_python(directory: Path, packages: tuple[str, ...]) -> Path:
    """The environment's interpreter: ours when the packages accept it, else a newer one of this machine."""
    program = directory / "bin" / "python"
    if _is_installed(directory, packages):
        return program
    why = "no Python"
    for python in _find_pythons():
        shutil.rmtree(directory, ignore_errors=True)
        try:
            _run([python, "-m", "venv", str(directory)], "venv")
            _run(
                [str(program), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *packages],
                "pip",
            )
        except Skipped as exc:
            why = str(exc)
            continue
        _note_installed(directory, packages)
        return program
    raise Skipped(why)


def _is_installed(directory: Path, packages: tuple[str, ...]) -> bool:
    """Whether these very packages are there, completely."""
    note = directory / "installed"
    return note.exists() and note.read_text() == " ".join(packages)


def _note_installed(directory: Path, packages: tuple[str, ...]) -> None:
    (directory / "installed").write_text(" ".join(packages))


def _find_pythons() -> list[str]:
    newer = [shutil.which(f"python3.{minor}") for minor in (12, 13, 14)]
    pyenv = sorted(Path.home().glob(".pyenv/versions/3.1[2-9].*/bin/python3"), reverse=True)
    return [getattr(sys, "_base_executable", sys.executable), *(p for p in newer if p), *map(str, pyenv)]


def _run(command: list[str], what: str, *, env: dict[str, str] | None = None, cwd: Path | None = None) -> str:
    """The program's output. Errors: Skipped with the end of what it said."""
    try:
        done = subprocess.run(
            command, env=env, cwd=cwd, capture_output=True, text=True, timeout=_INSTALL_S, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as exc:
        raise Skipped(f"{what}: {exc}") from exc
    if done.returncode != 0:
        said = [line for line in (done.stderr or done.stdout).splitlines() if line.strip()]
        raise Skipped(f"{what}: {said[-1][:200] if said else f'exit {done.returncode}'}")
    return done.stdout
