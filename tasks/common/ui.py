"""MLflow's pages for a browser, on this machine alone: `make ui`, or `make ui WORKSPACE=workspaces/real PORT=5001`.

Serves the store that the stages of this folder write to. Where MLFLOW_TRACKING_URI names a server, that one has the
pages already, and only its addresses are printed. Ctrl-C ends it.
"""

import argparse
import contextlib
import os
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from urllib.parse import quote

from arms_model.errors import ConfigError, DataError, EndpointError
from arms_model.uris import shown_uri
from tasks.common.params import raw_section
from tasks.common.stage import run_command
from tasks.common.tracking import (
    QUERIES,
    STORE,
    experiment_name,
    is_server,
    one_at_a_time,
    open_client,
    speaking_with,
    tracking_uri,
)

HOST = "127.0.0.1"
_START_S = 120
_MODE = "?workflowType=machine_learning"  # else MLflow opens as it is for prompts and agents


def serve(port: int) -> None:
    """Print the pages that matter and serve them until Ctrl-C.

    Raises:
        ConfigError: the port is taken, or MLFLOW_TRACKING_URI names no store.
        DataError: nothing was recorded here yet.
        EndpointError: MLflow is away, or its server does not start.
    """
    uri = tracking_uri()
    if is_server(uri):
        print("MLFLOW_TRACKING_URI names a server, which has the pages:")
        return _show(uri, shown_uri(uri))
    path = Path(uri.removeprefix("sqlite:///"))
    if uri.startswith("sqlite:///") and not path.exists():
        raise DataError(f"nothing is recorded in {Path.cwd()} yet; run `dvc repro`, or `python -m tasks.register`.")
    _refuse_taken(port)
    command = [sys.executable, "-m", "mlflow", "server", "--host", HOST, "--port", str(port), "--workers", "1"]
    command += ["--artifacts-destination", str(STORE / "artifacts")]
    # by environment, not by argument: others on the machine see arguments, and a database's address has its password
    known = os.environ | {"MLFLOW_BACKEND_STORE_URI": uri, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    with (STORE / "ui.log").open("wb") as log:
        server = subprocess.Popen(command, env=known, stdout=log, stderr=log)  # noqa: S603
    try:
        _wait_until_up(server, port)
        _show(uri, f"http://{HOST}:{port}")
        print("Ctrl-C ends it.", flush=True)
        with contextlib.suppress(KeyboardInterrupt):
            server.wait()
    finally:
        server.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            server.wait(10)
        server.kill()
    return None


def _show(uri: str, address: str) -> None:
    """Print the addresses of the query set's runs and of the registered model."""
    print(f"  all experiments   {address}/#/experiments{_MODE}")
    if QUERIES.exists():
        with one_at_a_time(), speaking_with(uri):
            experiment = open_client(uri).get_experiment_by_name(experiment_name())
        if experiment is not None:
            print(f"  this query set    {address}/#/experiments/{experiment.experiment_id}/runs{_MODE}")
    model = str(raw_section("register").get("model", "arms-router"))
    print(f"  registered model  {address}/#/models/{quote(model)}{_MODE}", flush=True)


def _refuse_taken(port: int) -> None:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError as error:
            raise ConfigError(
                f"port {port} cannot be used ({error.strerror}); choose another: make ui PORT={port + 1}."
            ) from None


def _wait_until_up(server: subprocess.Popen[bytes], port: int) -> None:
    until = time.monotonic() + _START_S
    while time.monotonic() < until and server.poll() is None:
        with contextlib.suppress(OSError), urllib.request.urlopen(f"http://{HOST}:{port}/health", timeout=5):
            return
        time.sleep(0.3)
    raise EndpointError(f"MLflow's server did not start; its own words stand in {STORE / 'ui.log'}.")


def main() -> int:
    """Serve until Ctrl-C; the exit code."""
    parser = argparse.ArgumentParser(prog="python -m tasks.common.ui", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--port", type=int, default=5000)
    port = parser.parse_args().port
    return run_command("ui", lambda: serve(port))


if __name__ == "__main__":
    sys.exit(main())
