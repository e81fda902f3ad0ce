"""Runs an MCP server until the process that asked for it ends, then ends all processes of the server's group.

It imports nothing of ours: it runs in an environment without our packages. Standard input and output belong to the
server.

    python -I -S stdio_supervisor.py FD COMMAND [ARGUMENT ...]

FD is the reading end of a pipe that nothing is written to. It ends with the process that holds the other end, also when
that one is killed.
"""

import contextlib
import os
import signal
import subprocess
import sys
import threading


def main() -> None:
    """Start the server, and wait for the end of either process."""
    alive, command = int(sys.argv[1]), sys.argv[2:]
    try:
        server = subprocess.Popen(command, start_new_session=True)
    except OSError:
        sys.exit(127)
    devnull = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1):
        # Else the server's end would not close its output.
        os.dup2(devnull, descriptor)
    threading.Thread(target=_end_with, args=(server,), daemon=True).start()
    os.read(alive, 1)
    _end_group(server)


def _end_with(server: "subprocess.Popen[bytes]") -> None:
    server.wait()
    _end_group(server)


def _end_group(server: "subprocess.Popen[bytes]") -> None:
    with contextlib.suppress(OSError):
        os.killpg(server.pid, signal.SIGKILL)
    os._exit(0)


if __name__ == "__main__":
    main()
