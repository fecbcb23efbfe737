"""Servers that a stage starts because nothing listens where a block says, and stops when it is done.

The embedded sandbox is one; a command such as `vllm serve ...` is another. A server that runs already is used as it is
and left alone.
"""

import contextlib
import ctypes
import logging
import os
import shlex
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from urllib.parse import urlsplit

from arms_model.errors import EndpointError
from tasks.common.files import written_whole  # noqa: F401
from tasks.common.vlms import Endpoint

log = logging.getLogger(__name__)
LOGS = Path(".arms/servers")
_START_S = 600.0  # a large model takes minutes to load
_STOP_S = 10.0
