"""Runs an MCP server until the process that asked for it ends, then ends all processes of the server's group.

It imports nothing of ours: it runs in an environment without our packages. Standard input and output belong to the
server.

    python -I -S stdio_supervisor.py FD COMMAND [ARGUMENT ...]

FD is the reading end of a pipe that nothing is written to. It ends with the process that holds the other end, also when
that one is killed.

Whatever the server writes to standard error is read all the time. The end of it is this program's standard error.
"""

import contextlib
import os
import signal
import subprocess
import sys
import threading

MOST_KEPT = 16 << 10
"""Bytes of the server's standard error that are kept. A pipe usually holds them, so nothing has to read them."""
REST_SECONDS = 0.5
"""For what processes of another group still write there."""


def main() -> None:
    """Start the server, and wait for the end of either process."""
    alive, command = int(sys.argv[1]), sys.argv[2:]
    try:
        server = subprocess.Popen(command, start_new_session=True, stderr=subprocess.PIPE)
    except OSError as error:
        sys.exit(str(error))
    devnull = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1):
        # Else the server's end would not close its output.
        os.dup2(devnull, descriptor)
    errors = _Errors(server)
    errors.start()
    ending = threading.Lock()
    threading.Thread(target=_end_with, args=(server, errors, ending), daemon=True).start()
    os.read(alive, 1)
    _end_group(server, errors, ending)


class _Errors(threading.Thread):
    """Reads standard error of the server, and keeps the end of it."""

    def __init__(self, server: "subprocess.Popen[bytes]") -> None:
        super().__init__(daemon=True)
        self.server = server
        self.last = b""

    def run(self) -> None:
        assert self.server.stderr is not None
        while part := os.read(self.server.stderr.fileno(), MOST_KEPT):
            self.last = (self.last + part)[-MOST_KEPT:]


def _end_with(server: "subprocess.Popen[bytes]", errors: _Errors, ending: threading.Lock) -> None:
    server.wait()
    _end_group(server, errors, ending)


def _end_group(server: "subprocess.Popen[bytes]", errors: _Errors, ending: threading.Lock) -> None:
    """End the server's group and this process. Only the first call returns from the lock."""
    ending.acquire()
    with contextlib.suppress(OSError):
        os.killpg(server.pid, signal.SIGKILL)
    errors.join(REST_SECONDS)
    with contextlib.suppress(OSError):
        os.set_blocking(2, False)  # a user with many pipes gets small ones
        os.write(2, errors.last)
    os._exit(0)


if __name__ == "__main__":
    main()
