"""What Ray runs in place of Python on a machine with a fork server: has the server fork the worker.

Usage: python -I -S fork_client.py SOCKET PROGRAM [ARGUMENT]...

Runs PROGRAM in this process instead if no server answers, or if the server belongs to another job. Imports next to
nothing, since it runs once for each worker.
"""

import json
import os
import resource
import signal
import socket
import sys


def main() -> None:
    path, *command = sys.argv[1:]
    with socket.socket(socket.AF_UNIX) as server:
        if not forked(server, path, command):
            os.execv(sys.executable, [sys.executable, *command])
        server.recv(1)  # returns once the worker has ended: Ray takes this process for it until it has registered


def forked(server: socket.socket, path: str, command: list[str]) -> bool:
    """Whether the server has forked a process for the command, in this process's place."""
    request = {
        "command": command,
        "environment": dict(os.environ),
        "folder": os.getcwd(),
        "blocked_signals": [int(number) for number in signal.pthread_sigmask(signal.SIG_BLOCK, ())],
        "open_files": resource.getrlimit(resource.RLIMIT_NOFILE),
    }
    try:
        server.connect(path)
        socket.send_fds(server, [b"+"], [0, 1, 2])
        server.sendall(json.dumps(request).encode())
        server.shutdown(socket.SHUT_WR)
        return server.recv(1) == b"+"
    except OSError:
        return False


if __name__ == "__main__":
    main()
