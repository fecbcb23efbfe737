"""Real servers for tests: MLflow's, in a process of its own, and a temporary PostgreSQL."""

import contextlib
import os
import resource
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

POSTGRES = max(
    Path("/usr/lib/postgresql").glob("[0-9]*/bin"), key=lambda folder: float(folder.parent.name), default=None
)


class MlflowServer:
    """MLflow's server over an SQLite file in `folder`; may be killed, started again, and given a full disk."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._port = free_port()
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._port}"

    @property
    def database(self) -> Path:
        return self._folder / "mlflow.db"

    def start(self, *, is_full: bool = False) -> None:
        """Start it and wait until it answers; with `is_full` it can write no file beyond two database pages."""
        limit = 8192 if is_full else None

        def limited() -> None:
            if limit is not None:
                resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

        command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(self._port)]
        command += ["--workers", "1", "--backend-store-uri", f"sqlite:///{self.database}"]
        command += ["--artifacts-destination", str(self._folder / "artifacts")]
        environment = os.environ | {"MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
        self._process = subprocess.Popen(
            command,
            cwd=self._folder,
            env=environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
            preexec_fn=limited,
        )
        wait_until(lambda: _answers(f"{self.url}/health"))

    def kill(self) -> None:
        """End it at once, as a machine that goes down would."""
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
        self._process = None


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=5):  # noqa: S310
            return True
    except OSError:
        return False


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def wait_until(is_so: Callable[[], object], *, seconds: float = 120, every_s: float = 0.1) -> None:
    """Wait until the call gives something true."""
    until = time.monotonic() + seconds
    while not is_so():
        if time.monotonic() > until:
            raise TimeoutError(f"not so after {seconds} s")
        time.sleep(every_s)


@contextlib.contextmanager
def postgres_cluster(folder: Path) -> Iterator[str]:
    """A PostgreSQL of the test's own on loopback; gives the URI of an empty database.

    Its programs refuse to run as root: then they run as the user `postgres`, which must be able to reach `folder`.
    """
    if POSTGRES is None:
        pytest.skip("PostgreSQL is not installed (/usr/lib/postgresql/*/bin)")
    as_user: list[str] = []
    data, port = folder / "data", free_port()
    if os.geteuid() == 0:
        as_user = ["setpriv", "--reuid=postgres", "--regid=postgres", "--clear-groups"]
        folder.chmod(0o777)
        shutil.chown(folder, "postgres")
    initdb = [*as_user, str(POSTGRES / "initdb"), "-A", "trust", "-U", "arms", "-D", str(data)]
    subprocess.run(initdb, cwd=folder, check=True, capture_output=True, timeout=120)
    options = f"-p {port} -c listen_addresses=127.0.0.1 -c unix_socket_directories= -c fsync=off"
    control = [*as_user, str(POSTGRES / "pg_ctl"), "-D", str(data)]
    # its log goes to a file: the server keeps what it inherits open
    start = [*control, "-s", "-w", "-o", options, "-l", str(folder / "log"), "start"]
    subprocess.run(start, cwd=folder, check=True, timeout=120)
    try:
        yield f"postgresql+psycopg2://arms:any@127.0.0.1:{port}/postgres"
    finally:
        subprocess.run([*control, "-m", "immediate", "stop"], cwd=folder, capture_output=True, timeout=120)
