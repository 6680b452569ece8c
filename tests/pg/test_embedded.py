"""The embedded Postgres: first start, crash, orphans, odd paths, other users."""

from __future__ import annotations

import asyncio
import os
import pwd
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import asyncpg
import pytest

from daemon.embedded import OS_USER, PostgresServer, embedded_postgres, hold_state_dir
from daemon.errors import Misconfigured
from daemon.settings import Embedded, Settings
from tests.support import eventually

_FAST = {"fsync": "off", "max_connections": "20", "shared_buffers": "16MB"}


@pytest.fixture
def parent() -> Iterator[Path]:
    """Not tmp_path: each pytest closes its parents to others, and the server of root is another user."""
    directory = Path(tempfile.mkdtemp(prefix="ld-embedded-"))
    yield directory
    shutil.rmtree(directory)


@pytest.fixture
def state_dir(parent: Path) -> Iterator[Path]:
    """A place for a server, which is ended whatever the test did to it."""
    directory = parent / "state"
    yield directory
    PostgresServer(directory / "postgres").stop()


async def _fetchval(dsn: str, query: str) -> object:
    connection = await asyncpg.connect(dsn)
    try:
        return await connection.fetchval(query)
    finally:
        await connection.close()


def _postmaster_pid(directory: Path) -> int:
    return int((directory / "postgres" / "postmaster.pid").read_text().splitlines()[0])


def _is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.parametrize("version", [16, 18])
async def test_data_outlives_a_restart_and_keeps_its_version(state_dir: Path, version: int) -> None:
    async with embedded_postgres(
        Settings(state_dir=_made(state_dir), embedded=Embedded(version=version))
    ) as dsn:
        await _fetchval(dsn, "create table kept as select 42 as answer")

    async with embedded_postgres(Settings(state_dir=state_dir)) as dsn:
        answer = await _fetchval(dsn, "select answer from kept")
        server = str(await _fetchval(dsn, "show server_version"))

    assert 42 == answer
    assert server.startswith(f"{version}.")
    assert not (state_dir / "postgres" / "postmaster.pid").exists()


async def test_nothing_is_printed(state_dir: Path, capfd: pytest.CaptureFixture[str]) -> None:
    async with embedded_postgres(Settings(state_dir=_made(state_dir))):
        pass

    assert ("", "") == tuple(capfd.readouterr())


async def test_the_server_listens_on_no_network_and_its_socket_is_private(state_dir: Path) -> None:
    async with embedded_postgres(Settings(state_dir=_made(state_dir))) as dsn:
        addresses = await _fetchval(dsn, "show listen_addresses")

    assert "" == addresses
    assert 0 == (state_dir / "postgres").stat().st_mode & 0o077


async def test_a_server_left_by_a_kill_is_adopted(state_dir: Path) -> None:
    """A killed daemon leaves its postmaster behind; the next start must neither fail nor lose data."""
    orphan = PostgresServer(_made(state_dir) / "postgres", options=_FAST)
    await asyncio.to_thread(orphan.start)
    await _fetchval(orphan.dsn, "create table kept ()")
    pid = _postmaster_pid(state_dir)

    async with embedded_postgres(Settings(state_dir=state_dir)) as dsn:
        adopted = _postmaster_pid(state_dir)
        kept = await _fetchval(dsn, "select to_regclass('kept') is not null")

    assert pid == adopted
    assert kept
    assert not _is_alive(pid)


async def test_a_crashed_server_is_started_again(state_dir: Path) -> None:
    server = PostgresServer(_made(state_dir) / "postgres", options=_FAST)
    await asyncio.to_thread(server.start)
    await _fetchval(server.dsn, "create table kept as select 1 as one")
    pid = _postmaster_pid(state_dir)
    os.kill(pid, signal.SIGKILL)
    await eventually(lambda: not _is_alive(pid))

    async with embedded_postgres(Settings(state_dir=state_dir)) as dsn:
        assert 1 == await _fetchval(dsn, "select one from kept")


async def test_a_pid_that_another_program_has_now_does_not_block_the_start(state_dir: Path) -> None:
    """After a reboot postmaster.pid may name a living process that has nothing to do with us."""
    server = PostgresServer(_made(state_dir) / "postgres", options=_FAST)
    await asyncio.to_thread(server.start)
    pid_file = state_dir / "postgres" / "postmaster.pid"
    lines = pid_file.read_text().splitlines()
    os.kill(int(lines[0]), signal.SIGKILL)
    await eventually(lambda: not _is_alive(int(lines[0])))
    stranger = subprocess.Popen(["sleep", "60"])
    pid_file.write_text("\n".join([str(stranger.pid), *lines[1:]]) + "\n")

    try:
        async with embedded_postgres(Settings(state_dir=state_dir)) as dsn:
            assert 1 == await _fetchval(dsn, "select 1")
        assert stranger.poll() is None
    finally:
        stranger.kill()
        stranger.wait()


async def test_an_interrupted_first_start_does_not_block_the_next(state_dir: Path) -> None:
    draft = _made(state_dir) / "postgres.new"
    draft.mkdir()
    (draft / "base").mkdir()

    async with embedded_postgres(Settings(state_dir=state_dir)) as dsn:
        assert 1 == await _fetchval(dsn, "select 1")

    assert not draft.exists()


@pytest.mark.parametrize("name", ["x" * 120, "with space, and 'quotes'"])
async def test_paths_that_no_socket_can_have_work(parent: Path, name: str) -> None:
    state_dir = _made(parent / name)
    server = PostgresServer(state_dir / "postgres", options=_FAST)

    async with embedded_postgres(Settings(state_dir=state_dir)) as dsn:
        assert 1 == await _fetchval(dsn, "select 1")
        assert 0o700 == server.socket_dir.stat().st_mode & 0o777

    assert not server.socket_dir.exists()


async def test_a_cancelled_start_leaves_no_server(state_dir: Path) -> None:
    """Ctrl-C in the first second must not leave half a start behind."""
    settings = Settings(state_dir=_made(state_dir))

    async def start() -> None:
        async with embedded_postgres(settings):
            pass

    task = asyncio.create_task(start())
    await eventually(lambda: (state_dir / "postgres.new").exists() or (state_dir / "postgres").exists())
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task

    assert not (state_dir / "postgres" / "postmaster.pid").exists()


def test_a_second_daemon_is_told_who_has_the_state_dir(tmp_path: Path) -> None:
    settings = Settings(state_dir=tmp_path / "deep" / "state")
    code = (
        "import sys; from pathlib import Path; from daemon.embedded import hold_state_dir;"
        "from daemon.settings import Settings; from daemon.errors import Misconfigured\n"
        "try:\n  with hold_state_dir(Settings(state_dir=Path(sys.argv[1]))): print('got it')\n"
        "except Misconfigured as exc: print(exc.message)"
    )

    def try_elsewhere() -> str:
        return subprocess.run(
            [sys.executable, "-c", code, str(settings.state_dir)], capture_output=True, text=True, check=True
        ).stdout

    with hold_state_dir(settings):
        refused = try_elsewhere()
    allowed = try_elsewhere()

    assert f"Another listingd (process {os.getpid()}) uses {settings.state_dir}." == refused.strip()
    assert "got it" == allowed.strip()
    assert 0o700 == settings.state_dir.stat().st_mode & 0o777


def test_a_state_dir_that_cannot_be_made_says_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")

    with (
        pytest.raises(Misconfigured, match="Set LISTINGD_STATE_DIR"),
        hold_state_dir(Settings(state_dir=tmp_path / "file" / "state")),
    ):
        pass


def test_a_full_disk_keeps_no_daemon_from_its_state_dir(tmp_path: Path) -> None:
    """What cannot be written is the process id, which is there for a message alone."""
    (tmp_path / "lock").symlink_to("/dev/full")

    with hold_state_dir(Settings(state_dir=tmp_path)):
        pass


def test_a_database_of_an_unknown_version_is_refused(tmp_path: Path) -> None:
    (tmp_path / "postgres").mkdir()
    (tmp_path / "postgres" / "PG_VERSION").write_text("12\n")

    with pytest.raises(Misconfigured, match="belongs to PostgreSQL 12"):
        PostgresServer(tmp_path / "postgres").start()


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to become somebody else")
async def test_a_server_that_does_not_start_says_why(state_dir: Path) -> None:
    """The reason comes before Postgres opens its own log, whose end tells of the last stop."""
    server = PostgresServer(_made(state_dir) / "postgres", options=_FAST)
    server.start()
    server.stop()
    server.data_dir.chmod(0o755)

    with pytest.raises(Misconfigured) as caught:
        server.start()

    assert "has invalid permissions" in caught.value.message
    assert "shut down" not in caught.value.message


def test_a_database_whose_version_is_gone_is_called_damaged(tmp_path: Path) -> None:
    """A full disk leaves such a file."""
    (tmp_path / "postgres").mkdir()
    (tmp_path / "postgres" / "PG_VERSION").write_text("")

    with pytest.raises(Misconfigured, match="is damaged"):
        PostgresServer(tmp_path / "postgres").start()


async def test_root_runs_it_as_a_user_of_its_own_and_others_are_told(state_dir: Path) -> None:
    """Postgres never runs as root, and another user's directory must not be touched."""
    async with embedded_postgres(Settings(state_dir=_made(state_dir))):
        owner = pwd.getpwuid((state_dir / "postgres").stat().st_uid)

        nobody = pwd.getpwnam("nobody")
        os.setegid(nobody.pw_gid)
        os.seteuid(nobody.pw_uid)
        try:
            with pytest.raises(Misconfigured, match="belongs to another user"):
                PostgresServer(state_dir / "postgres").start()
        finally:
            os.seteuid(0)
            os.setegid(0)

    assert OS_USER == owner.pw_name


def _made(state_dir: Path) -> Path:
    state_dir.mkdir(parents=True, mode=0o700)
    return state_dir
