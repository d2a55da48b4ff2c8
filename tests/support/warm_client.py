"""The command that has `warm.py` start a program: it ends as that ends, with its exit code or by its signal.

Tests run it a thousand times. `socket`, `signal` and `json` would take longer to import than Python takes to start, so
it uses what they are made of.
"""

import _signal
import _socket
import os
import sys


def main(path: str, *arguments: str) -> int:
    server = _socket.socket(_socket.AF_UNIX, _socket.SOCK_SEQPACKET)
    server.connect(path)
    pid_fd = os.environ.pop("WARM_PYTHON_PID_FD", None)
    wanted = ascii((arguments, os.getcwd(), dict(os.environ))).encode()
    streams = b"".join(fd.to_bytes(4, sys.byteorder) for fd in (0, 1, 2))
    server.sendmsg([wanted], [(_socket.SOL_SOCKET, _socket.SCM_RIGHTS, streams)])
    pid = int(server.recv(100))
    if pid_fd is not None:
        os.write(int(pid_fd), b"%d" % pid)
        os.close(int(pid_fd))
    for number in (_signal.SIGINT, _signal.SIGTERM, _signal.SIGHUP):
        if _signal.getsignal(number) != _signal.SIG_IGN:
            _signal.signal(number, lambda number, _: os.kill(pid, number))
    code = int(server.recv(100))
    if code >= 0:
        return code
    if code != -_signal.SIGKILL:
        _signal.signal(-code, _signal.SIG_DFL)
    os.kill(os.getpid(), -code)
    return 1


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
