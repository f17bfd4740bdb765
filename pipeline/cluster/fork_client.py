"""What Ray runs in place of Python on a machine with a fork server: has the server fork the worker, and stands for it.

Usage: python -I -S fork_client.py SOCKET PROGRAM [ARGUMENT]...

Ends as the worker ends, and the worker ends with it. Runs PROGRAM in this process instead if the server is gone, slow
or unwilling. Imports next to nothing, since it runs once for each worker.
"""

import json
import os
import resource
import signal
import socket
import sys
from pathlib import Path

WAIT_S = 30.0  # for a server that still imports; Ray gives a worker 60 s to start


def main() -> None:
    path, *command = sys.argv[1:]
    with socket.socket(socket.AF_UNIX) as server:
        if forked(server, path, command):
            status = server.recv(1)  # nothing if the server has died, and the worker with it
            sys.exit(status[0] if status else 1)
    os.execv(sys.executable, [sys.executable, *command])


def forked(server: socket.socket, path: str, command: list[str]) -> bool:
    """Whether the server has forked a process for the command."""
    request = {
        "command": command,
        "environment": dict(os.environ),
        "folder": os.getcwd(),
        "group": os.getpgrp(),
        "blocked_signals": [int(number) for number in signal.pthread_sigmask(signal.SIG_BLOCK, ())],
        "open_files": resource.getrlimit(resource.RLIMIT_NOFILE),
        "oom_score": Path("/proc/self/oom_score_adj").read_text(),  # Ray has workers killed before its daemons
    }
    try:
        server.settimeout(WAIT_S)
        server.connect(path)
        socket.send_fds(server, [b"+"], [0, 1, 2])
        server.sendall(json.dumps(request).encode() + b"\n")
        answer = server.recv(1)
        if answer == b"-":
            print("not forked:", server.recv(1000).decode(), file=sys.stderr)
        server.settimeout(None)
    except OSError:
        return False
    return answer == b"+"


if __name__ == "__main__":
    main()
