"""Private PostgreSQL and Valkey: real servers, real kills."""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import redis
import sqlalchemy
from sqlalchemy.pool import NullPool

from orchestrator.local.embedded import Addresses, EmbeddedServers, binaries, launcher, scratch_dir, traces
from orchestrator.local.embedded.postgres import traces as postgres_traces
from orchestrator.local.embedded.system_user import SystemUser, server_user
from orchestrator.local.embedded.traces import command_line
from orchestrator.local.embedded.valkey import traces as valkey_traces
from shared.errors import Conflict, Unavailable

AS_ROOT = os.geteuid() == 0
LINUX = sys.platform == "linux"

# An owner in a separate process: it prints both servers' pids, runs the test's code, then waits.
OWNER = """
import os, signal, sys, time
from pathlib import Path
from orchestrator.local.embedded import EmbeddedServers, launcher
{before}
servers = EmbeddedServers(Path(sys.argv[1]))
servers.start()
{after}
print(servers.postgres.pid, servers.valkey.pid, flush=True)
signal.pause()
"""


@pytest.fixture(scope="module")
def cluster() -> Iterator[Path]:
    """A data folder whose servers were started once: creating a cluster takes longer than most tests."""
    with scratch_dir() as path:
        with running(path):
            pass
        yield path


@pytest.fixture
def empty_folder() -> Iterator[Path]:
    with scratch_dir() as path:
        yield path


@pytest.fixture
def folder(empty_folder: Path, cluster: Path) -> Path:
    """A data folder with a cluster, to which no server has been started."""
    for part in ("postgres", "server_password"):
        subprocess.run(["cp", "-a", cluster / part, empty_folder], check=True)
    return empty_folder


@contextmanager
def running(data_dir: Path, *, durable: bool = False) -> Iterator[tuple[EmbeddedServers, Addresses]]:
    with EmbeddedServers(data_dir, durable=durable) as servers:
        yield servers, servers.start()


def query(addresses: Addresses, statement: str) -> Any:
    """Run one statement as a client would; the first value of its result, if it has one."""
    engine = sqlalchemy.create_engine(addresses.database_url, poolclass=NullPool)
    with engine.begin() as connection:
        result = connection.execute(sqlalchemy.text(statement))
        return result.scalar() if result.returns_rows else None


@contextmanager
def broker(addresses: Addresses) -> Iterator[redis.Redis]:
    with redis.Redis.from_url(addresses.redis_url) as client:
        yield client


PATIENT = [
    ("postgres", "FATAL:  the database system is starting up"),
    ("postgres", "FATAL:  the database system is in recovery mode"),
    ("postgres", "FATAL:  the database system is not yet accepting connections"),
    ("valkey", "Redis is loading the dataset in memory"),
]


@pytest.mark.parametrize(("name", "said"), PATIENT)
def test_server_that_reads_its_files_gets_time(
    folder: Path, monkeypatch: pytest.MonkeyPatch, name: str, said: str
) -> None:
    with running(folder) as (servers, _):
        server = getattr(servers, name)
        monkeypatch.setattr("orchestrator.local.embedded.server.START_SECONDS", 0.0)
        answers = iter([said, said, None])
        monkeypatch.setattr(server, "probe", lambda: next(answers))
        server._wait_until_ready()
        monkeypatch.setattr(server, "probe", lambda: "No such file or directory")
        with pytest.raises(Unavailable, match="did not answer within 0 s"):
            server._wait_until_ready()


def remember(addresses: Addresses) -> None:
    query(addresses, "CREATE TABLE kept AS SELECT 'word' AS value")
    with broker(addresses) as client:
        client.set("kept", "word")


def recall(addresses: Addresses) -> tuple[Any, Any]:
    with broker(addresses) as client:
        return query(addresses, "SELECT value FROM kept"), client.get("kept")


def wait_until(condition: Callable[[], bool], seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it never happened"
        time.sleep(0.01)


@contextmanager
def owner_process(data_dir: Path, before: str = "", after: str = "") -> Iterator[tuple[Any, list[int]]]:
    """An owner that has started its servers, and their pids."""
    script = OWNER.format(before=before, after=after)
    command = [sys.executable, "-c", script, str(data_dir)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        try:
            yield process, [int(pid) for pid in process.stdout.readline().split()]
        finally:
            process.kill()


def test_cold_start_provides_database_and_broker(empty_folder: Path) -> None:
    with running(empty_folder) as (_, addresses):
        assert query(addresses, "SELECT current_database() || '/' || current_user") == "minions/minions"
        assert query(addresses, "SHOW server_encoding") == "UTF8"
        assert query(addresses, "SHOW timezone") == "UTC"
        assert query(addresses, "SELECT lower('ÄÖ') || ('a' < 'B')") == "äöfalse"
        assert int(query(addresses, "SHOW server_version_num")) >= 150000
        with broker(addresses) as client:
            assert client.ping()
            assert client.config_get("maxmemory-policy") == {"maxmemory-policy": "noeviction"}


@pytest.mark.parametrize(("durable", "expected"), [(True, ("on", "yes")), (False, ("off", "no"))])
def test_durability_is_a_choice(folder: Path, durable: bool, expected: tuple[str, str]) -> None:
    with running(folder, durable=durable) as (_, addresses), broker(addresses) as client:
        for setting in ("fsync", "synchronous_commit", "full_page_writes"):
            assert query(addresses, f"SHOW {setting}") == expected[0]
        assert client.config_get("appendonly") == {"appendonly": expected[1]}


def test_start_and_stop_may_be_repeated(folder: Path) -> None:
    servers = EmbeddedServers(folder, durable=False)
    servers.stop()
    with pytest.raises(Unavailable, match="not started"):
        _ = servers.postgres
    try:
        addresses = servers.start()
        pids = servers.postgres.pid, servers.valkey.pid
        assert servers.start() == addresses
        assert (servers.postgres.pid, servers.valkey.pid) == pids
    finally:
        servers.stop()
    servers.stop()
    assert not any(command_line(pid) for pid in pids if pid)


def test_warm_restart_keeps_data_and_leaves_no_sockets(folder: Path) -> None:
    with running(folder, durable=True) as (servers, addresses):
        remember(addresses)
        sockets = servers.postgres.socket_dir
    assert not sockets.exists()
    with running(folder, durable=True) as (_, addresses):
        assert recall(addresses) == ("word", b"word")


@pytest.mark.parametrize("name", ["with space", "odd 'single' \"double\", comma", "long/" + "x" * 200])
def test_any_path_will_do(folder: Path, name: str) -> None:
    for _ in range(2):
        with running(folder / name, durable=True) as (_, addresses):
            assert query(addresses, "SELECT 1") == 1


def test_a_temporary_directory_with_a_space_or_too_long(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("a b", "x" * 100):
        temporary = folder / name
        temporary.mkdir(mode=0o711)
        monkeypatch.setattr("tempfile.tempdir", str(temporary))
        with running(folder / "data") as (_, addresses), broker(addresses) as client:
            assert query(addresses, "SELECT 1") == 1
            assert client.ping()


def test_two_side_by_side_do_not_meet(folder: Path) -> None:
    with running(folder / "a") as (_, first), running(folder / "b") as (_, second):
        query(first, "CREATE TABLE only_here ()")
        assert query(second, "SELECT to_regclass('only_here')") is None
        with broker(first) as one, broker(second) as other:
            one.set("only", "here")
            assert other.get("only") is None


def test_clients_need_the_password(folder: Path) -> None:
    with running(folder) as (_, addresses):
        password = (folder / "server_password").read_text()
        wrong = Addresses(*(url.replace(password, "guess") for url in (addresses.database_url, addresses.redis_url)))
        with pytest.raises(sqlalchemy.exc.OperationalError, match="password authentication failed"):
            query(wrong, "SELECT 1")
        with pytest.raises(redis.AuthenticationError), broker(wrong) as client:
            client.ping()


def test_addresses_ignore_the_clients_own_environment(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"PGPORT": "1", "PGHOST": "nowhere", "PGUSER": "me", "PGDATABASE": "none"}.items():
        monkeypatch.setenv(name, value)
    with running(folder) as (_, addresses):
        assert query(addresses, "SELECT 1") == 1


def test_files_are_private(folder: Path) -> None:
    data_dir = folder / "data"
    with running(data_dir) as (servers, _):
        assert mode(data_dir) == (0o711 if AS_ROOT else 0o700)
        assert mode(data_dir / "server_password") == mode(data_dir / "valkey.conf") == 0o600
        private = ("postgres", "valkey", "logs")
        assert {mode(path) for path in [*(data_dir / name for name in private), servers.postgres.socket_dir]} == {0o700}


def mode(path: Path) -> int:
    return path.stat().st_mode & 0o777


@pytest.mark.skipif(not LINUX, reason="reads /proc")
def test_servers_do_not_listen_on_tcp_and_pass_no_secret(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ANTHROPIC_API_KEY", "a-secret")
    with running(folder) as (servers, _):
        password = (folder / "server_password").read_text()
        for pid in (servers.postgres.pid, servers.valkey.pid):
            assert pid
            assert open_sockets(pid)
            assert not open_sockets(pid) & listening_tcp_sockets()
            assert b"a-secret" not in Path(f"/proc/{pid}/environ").read_bytes()
            assert password not in command_line(pid)


def open_sockets(pid: int) -> set[str]:
    links = [os.readlink(path) for path in Path(f"/proc/{pid}/fd").iterdir()]
    return {link.removeprefix("socket:[").rstrip("]") for link in links if link.startswith("socket:")}


def listening_tcp_sockets() -> set[str]:
    tables = [path for path in (Path("/proc/net/tcp"), Path("/proc/net/tcp6")) if path.exists()]
    rows = [line.split() for table in tables for line in table.read_text().splitlines()[1:]]
    return {row[9] for row in rows if row[3] == "0A"}


def test_killed_owner_does_not_block_the_next(folder: Path) -> None:
    with owner_process(folder) as (owner, pids):
        with pytest.raises(Conflict, match=f"belong to process {owner.pid}") as refusal:
            EmbeddedServers(folder).start()
        assert refusal.value.detail == {"pid": owner.pid}
        owner.kill()
        owner.wait()
        if LINUX:
            wait_until(lambda: not any(map(command_line, pids)))
    with running(folder, durable=True) as (_, addresses):
        assert query(addresses, "SELECT 1") == 1
    assert not any(map(command_line, pids))


def test_servers_that_outlived_their_owner_are_ended(folder: Path) -> None:
    """As on systems without a death signal."""
    before = "launcher._LAUNCHER = launcher._LAUNCHER.replace('linux', 'nowhere')"
    with owner_process(folder, before) as (owner, pids):
        owner.kill()
        owner.wait()
    sockets = Path((folder / "sockets").read_text())
    assert all(map(command_line, pids))
    with running(folder, durable=True) as (_, addresses):
        assert not any(map(command_line, pids))
        assert not sockets.exists()
        assert query(addresses, "SELECT 1") == 1


def test_stale_pid_of_another_process_is_not_touched(folder: Path) -> None:
    with running(folder) as (servers, _):
        pid_file = postgres_traces(folder).pid_file
        stale = pid_file.read_text()
        assert stale.splitlines()[0] == str(servers.postgres.pid)
    with bystander(server_user()) as innocent:
        pid_file.write_text("\n".join([str(innocent.pid), *stale.splitlines()[1:]]) + "\n")
        valkey_traces(folder).pid_file.write_text(f"{innocent.pid}\n")
        with running(folder) as (_, addresses):
            assert query(addresses, "SELECT 1") == 1
        assert innocent.poll() is None


@pytest.mark.parametrize("content", ["", "not a pid\n", "0\n", "-1\n"])
def test_a_broken_pid_file_does_not_matter(folder: Path, content: str) -> None:
    with running(folder):
        pass
    postgres_traces(folder).pid_file.write_text(content)
    with running(folder) as (_, addresses):
        assert query(addresses, "SELECT 1") == 1


@contextmanager
def bystander(user: SystemUser | None) -> Iterator[subprocess.Popen[bytes]]:
    """A process of the same user as the servers, else PostgreSQL would know that it is not one of its processes."""
    identity: dict[str, Any] = {"user": user.uid, "group": user.gid, "extra_groups": []} if user else {}
    with subprocess.Popen(["sleep", "600"], cwd="/", **identity) as process:
        try:
            yield process
        finally:
            process.kill()


def test_manually_started_postgres_is_a_conflict(folder: Path) -> None:
    with running(folder) as (servers, _):
        command = servers.postgres.command()
        sockets = servers.postgres.socket_dir
    sockets.mkdir(mode=0o777)
    sockets.chmod(0o777)
    user = server_user()
    identity: dict[str, Any] = {"user": user.uid, "group": user.gid, "extra_groups": []} if user else {}
    with (folder / "by_hand.log").open("w") as log:
        by_hand = subprocess.Popen(command, stdout=log, stderr=log, cwd="/", **identity)
    try:
        wait_until(lambda: postgres_traces(folder).main_pid() == by_hand.pid)
        with pytest.raises(Conflict, match=f"Process {by_hand.pid} runs PostgreSQL"):
            EmbeddedServers(folder, durable=False).start()
        assert by_hand.poll() is None
    finally:
        by_hand.send_signal(signal.SIGINT)
        by_hand.wait()
        shutil.rmtree(sockets)


def test_killed_servers_restart_at_the_same_addresses(folder: Path) -> None:
    with running(folder, durable=True) as (servers, addresses):
        remember(addresses)
        with broker(addresses) as client:
            client.execute_command("WAITAOF", 1, 0, 5000)
        servers.postgres.kill()
        servers.valkey.kill()
        assert not servers.postgres.running
        assert servers.valkey.pid is None
        servers.postgres.start()
        assert servers.start() == addresses
        assert recall(addresses) == ("word", b"word")


@pytest.mark.skipif(not LINUX, reason="finds the children in /proc")
def test_busy_children_of_a_killed_server_are_ended(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(traces, "_PATIENCE_SECONDS", 0.5)
    with running(folder) as (servers, addresses):
        if not traces.holders(servers.postgres.traces.lock):
            pytest.skip("this system does not let us look into another user's processes")
        client = threading.Thread(target=busy_for_minutes, args=[addresses])
        client.start()
        wait_until(lambda: query(addresses, "SELECT count(*) FROM pg_stat_activity WHERE query LIKE '%busy%'") > 1)
        servers.postgres.kill()
        servers.postgres.start()
        client.join()
        assert query(addresses, "SELECT 1") == 1


def busy_for_minutes(addresses: Addresses) -> None:
    with pytest.raises(sqlalchemy.exc.OperationalError):
        query(addresses, "SELECT count(*) AS busy FROM generate_series(1, 3000000000)")


def test_one_server_can_be_stopped_and_started(folder: Path) -> None:
    with running(folder) as (servers, addresses):
        servers.valkey.stop()
        servers.valkey.stop()
        with pytest.raises(redis.ConnectionError), broker(addresses) as client:
            client.ping()
        servers.valkey.start()
        with broker(addresses) as client:
            assert client.ping()


def test_the_thread_that_starts_them_may_end(folder: Path) -> None:
    servers = EmbeddedServers(folder, durable=False)
    try:
        thread = threading.Thread(target=servers.start)
        thread.start()
        thread.join()
        pids = servers.postgres.pid, servers.valkey.pid
        assert query(servers.start(), "SELECT pg_sleep(0.2)") is not None  # a death signal would end it
        assert (servers.postgres.pid, servers.valkey.pid) == pids
    finally:
        servers.stop()


def test_a_forked_child_neither_ends_them_nor_keeps_the_folder(folder: Path) -> None:
    after = """
child = os.fork()
if child == 0:
    servers.stop()
    try:
        servers.start()
    except Exception as error:
        assert "forked" in str(error), error
        Path(sys.argv[1], "refused").touch()
    signal.pause()
Path(sys.argv[1], "child").write_text(str(child))
while not Path(sys.argv[1], "refused").exists():
    time.sleep(0.01)
"""
    with owner_process(folder, after=after) as (owner, pids):
        assert all(map(command_line, pids))
        child = int((folder / "child").read_text())
        try:
            owner.kill()
            owner.wait()
            with running(folder, durable=True) as (_, addresses):
                assert query(addresses, "SELECT 1") == 1
        finally:
            os.kill(child, signal.SIGKILL)


def test_another_major_version_is_refused(folder: Path) -> None:
    with running(folder):
        pass
    (folder / "postgres" / "PG_VERSION").write_text("14\n")
    with pytest.raises(Conflict, match="created by PostgreSQL 14"):
        EmbeddedServers(folder).start()


def test_a_server_that_cannot_start_shows_its_log(folder: Path) -> None:
    with running(folder):
        pass
    (folder / "postgres" / "global" / "pg_control").unlink()
    servers = EmbeddedServers(folder)
    with pytest.raises(Unavailable, match=r"PostgreSQL ended right after its start(?s:.*)pg_control"):
        servers.start()
    (folder / "postgres" / "postgresql.conf").write_text("no such setting\n")
    with pytest.raises(Unavailable, match=r"(?s:.*)syntax error in file"):  # and the lock was let go
        servers.start()


def test_a_lost_password_is_named(folder: Path) -> None:
    with running(folder):
        pass
    (folder / "server_password").unlink()
    with pytest.raises(Unavailable, match="server_password is missing"):
        EmbeddedServers(folder).start()


def test_a_data_folder_that_is_a_file_is_named(folder: Path) -> None:
    (folder / "file").touch()
    with pytest.raises(Unavailable, match="cannot start in"):
        EmbeddedServers(folder / "file").start()


def test_a_log_that_grew_too_large_is_put_aside(folder: Path) -> None:
    with running(folder):
        pass
    log = folder / "logs" / "postgres.log"
    with log.open("r+b") as file:
        file.truncate(11 << 20)
    with running(folder):
        assert log.stat().st_size < 1 << 20
        assert log.with_name("postgres.log.1").stat().st_size == 11 << 20


@pytest.mark.skipif(not AS_ROOT, reason="only root has to become somebody else")
def test_root_learns_which_folder_is_closed(folder: Path) -> None:
    closed = folder / "closed"
    closed.mkdir(mode=0o700)
    with pytest.raises(Unavailable, match=f"cannot enter {closed}:"):
        EmbeddedServers(closed / "data").start()


@pytest.mark.skipif(not AS_ROOT, reason="only root copies the programs")
def test_several_processes_may_copy_the_programs_at_once(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(binaries, "default_data_dir", lambda: folder)
    user = server_user()
    found: list[binaries.Binaries] = []
    threads = [threading.Thread(target=lambda: found.append(binaries.find_binaries(user))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 4
    assert len(set(found)) == 1
    assert found[0].initdb.is_file()
    assert len(list((folder / "runtime").iterdir())) == 1


@pytest.mark.skipif(not AS_ROOT, reason="the other tests run as an ordinary user already")
def test_as_an_ordinary_user(folder: Path) -> None:
    user = pwd.getpwnam("nobody")
    identity: dict[str, Any] = {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []}
    environment = {"PYTHONPATH": os.pathsep.join(p for p in sys.path if p), "PATH": os.defpath}
    environment["LD_LIBRARY_PATH"] = str(folder / "python" / "lib")  # where a copied libpython would lie
    interpreter = reachable_interpreter(identity, environment, folder / "python")
    home = folder / "home"
    home.mkdir()
    os.chown(home, user.pw_uid, user.pw_gid)
    script = (
        "import os, sys; from pathlib import Path; "
        "from orchestrator.local.embedded import EmbeddedServers, scratch_dir\n"
        "for _ in range(2):\n"
        "    with EmbeddedServers(Path(sys.argv[1])) as servers: print(os.getuid(), servers.postgres.running)\n"
        "with scratch_dir() as path: print(path)\n"
    )
    environment["HOME"] = str(home)
    run = subprocess.run(
        [interpreter, "-B", "-c", script, str(home / "data dir")],
        env=environment, cwd="/", capture_output=True, text=True, check=False, **identity,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    assert run.stdout.splitlines()[:2] == [f"{user.pw_uid} True"] * 2
    assert run.stdout.splitlines()[2].startswith(f"{home}/.local/state/minions/")
    assert mode(home / "data dir") == 0o700


def reachable_interpreter(identity: dict[str, Any], environment: dict[str, str], copy: Path) -> str:
    """A Python of our version that the user can run with our packages: ours, or a copy if it is out of reach."""
    for candidate in (lambda: sys.executable, lambda: copied_interpreter(copy)):
        command = [
            interpreter := candidate(),
            "-B",
            "-c",
            "import psycopg, redis, sqlalchemy, orchestrator.local.embedded",
        ]
        try:
            subprocess.run(command, env=environment, cwd="/", check=True, capture_output=True, **identity)
        except (OSError, subprocess.CalledProcessError):
            continue
        return interpreter
    pytest.skip("no Python that an ordinary user can run with these packages")


def copied_interpreter(target: Path) -> str:
    """The Python below our virtual environment, which may lie in root's home, without what it can do without."""
    name = f"python{sys.version_info.major}.{sys.version_info.minor}"
    base = Path(sys.base_prefix)
    unneeded = shutil.ignore_patterns("site-packages", "test", "config-*", "idlelib", "ensurepip", "__pycache__")
    shutil.copytree(base / "lib" / name, target / "lib" / name, ignore=unneeded)
    for library in (base / "lib").glob("libpython*"):
        shutil.copy2(library, target / "lib")
    (target / "bin").mkdir()
    return str(shutil.copy2(Path(sys.executable).resolve(), target / "bin" / name))


def test_a_scratch_folder_is_private_and_goes_away() -> None:
    with scratch_dir() as path:
        servers = EmbeddedServers(path / "left running", durable=False)
        servers.start()
        assert mode(path) == (0o711 if AS_ROOT else 0o700)
    assert not path.exists()
    assert not servers.postgres.running
    servers.stop()


def test_scratch_folders_of_dead_owners_are_removed() -> None:
    script = (
        "import time\n"
        "from orchestrator.local.embedded import EmbeddedServers, launcher, scratch_dir\n"
        "launcher._LAUNCHER = launcher._LAUNCHER.replace('linux', 'nowhere')\n"
        "with scratch_dir() as path:\n"
        "    servers = EmbeddedServers(path / 'data', durable=False)\n"
        "    servers.start()\n"
        "    print(servers.postgres.pid, path, flush=True)\n"
        "    time.sleep(600)\n"
    )
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True) as owner:
        assert owner.stdout
        pid, path = owner.stdout.readline().strip().split(maxsplit=1)
        with scratch_dir():
            assert Path(path).exists()
        owner.kill()
    assert command_line(int(pid))
    with scratch_dir():
        assert not Path(path).exists()
    assert not command_line(int(pid))


def test_launcher_ends_with_its_owner(folder: Path) -> None:
    nobody = [str(part) for part in (1 << 30, signal.SIGTERM.value, -1, -1)]
    command = [sys.executable, "-I", "-S", "-c", launcher._LAUNCHER, *nobody, "/bin/echo", "started"]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (run.returncode, run.stdout) == (1, "")
    assert "gone" in run.stderr
