"""A wide-area link on one machine, for kernels without netem: two network namespaces, `wan.c` between them, and nginx
at the far end. As root; it needs gcc, nginx, curl, openssl, `ip` (iproute2), `nsenter` and `chrt` (util-linux).

Nothing outside the two namespaces is touched, all is torn down at the end, and several may run at once.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import shutil
import subprocess
import tempfile
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

HERE = Path(__file__).resolve().parent
CLIENT, SERVER = "10.77.0.1", "10.77.0.2"
PROGRAMS = ("gcc", "nginx", "curl", "openssl", "ip", "nsenter", "chrt", "sysctl")
_PATH = os.environ.get("PATH", os.defpath) + ":/usr/sbin:/sbin"

# Where the kernel groups processes by session, nice counts within the group, and the group has a nice value of its own.
_PREFERRED = ("setsid", "sh", "-c", 'echo -15 > /proc/self/autogroup; exec nice -n -15 "$@"', "sh")

_SYSCTLS = {
    "net.ipv4.tcp_no_metrics_save": "1",  # a run is not to learn from the one before
    "net.ipv4.tcp_rmem": "4096 131072 6291456",  # as Linux comes; this machine may be tuned
    "net.ipv4.tcp_wmem": "4096 16384 4194304",
}

_NGINX = """\
user root;
worker_processes 1;
daemon off;
pid {home}/nginx.pid;
error_log {home}/error.log crit;
events {{ worker_connections 4096; }}
http {{
    default_type application/octet-stream;
    log_format ranges '$connection $status $bytes_sent "$http_range" $uri $request_time $msec';
    access_log {home}/access.log ranges;
    sendfile on;
    tcp_nopush on;
    keepalive_requests 1000;
    client_body_temp_path {home}/t1; proxy_temp_path {home}/t2; fastcgi_temp_path {home}/t3;
    uwsgi_temp_path {home}/t4; scgi_temp_path {home}/t5;
    ssl_certificate {home}/cert.pem;
    ssl_certificate_key {home}/key.pem;
    ssl_session_cache shared:s:1m;
    limit_conn_zone $server_port zone=all:1m;
    server {{ listen {server}:80 backlog=1024; root {site}; }}
    server {{ listen {server}:443 ssl http2; root {site}; }}
    server {{ listen {server}:8080; root {site}; limit_rate 1m; }}
    server {{ listen {server}:8081; root {site}; limit_conn all 4; limit_conn_status 503; }}
    server {{ listen {server}:8082; root {site}; limit_conn all 4; limit_conn_status 429;
              error_page 429 @slow; location @slow {{ add_header Retry-After 2 always; return 429; }} }}
}}
"""


@dataclass(frozen=True, slots=True)
class Link:
    """Both directions are alike."""

    rtt_ms: float = 80
    rate_mbit: float = 100
    loss_permille: float = 0
    jitter_ms: float = 0
    queue_ms: float = 50  # of the rate: how much the bottleneck's queue holds before it drops
    burst: str = ""  # Gilbert-Elliott: chances per packet that a burst begins, that it ends, and of loss within it
    seed: int = 1

    def options(self) -> list[str]:
        """For `wan.c`."""
        queue = max(30_000, int(self.rate_mbit * 1e6 / 8 * self.queue_ms / 1e3))
        given = {
            "delay": self.rtt_ms / 2,
            "rate": self.rate_mbit,
            "loss": self.loss_permille,
            "jitter": self.jitter_ms,
            "queue": queue,
            "seed": self.seed,
        }
        words = [word for name, value in given.items() for word in (f"--{name}", str(value))]
        return [*words, *(["--burst", self.burst] if self.burst else [])]


class Lab:
    """The two namespaces, the link between them, and nginx, inside a `with` block.

    The server is at `http://10.77.0.2`, and with TLS and HTTP/2 at `https://10.77.0.2`, whose certificate is `ca`. Port
    8080 sends 1 MiB/s to each connection; 8081 takes four and answers 503 to more, 8082 does so with 429.
    """

    def __init__(self, link: Link, site: Path) -> None:
        self._link = link
        self._site = site
        self._stack = contextlib.ExitStack()
        self._lock = threading.Lock()

    def inside(self, *command: str) -> tuple[str, ...]:
        """The command that runs this one at the near end, before what else the machine does."""
        return (*_PREFERRED, "nsenter", f"--net=/run/netns/{self._client}", *command)

    def tell(self, text: str) -> str:
        """Give the link a command, such as `outage 15`; see `wan.c`."""
        with self._lock:
            assert self._wan.stdin is not None
            assert self._wan.stdout is not None
            self._wan.stdin.write(text.encode() + b"\n")
            self._wan.stdin.flush()
            return self._wan.stdout.readline().decode().strip()

    def serve(self, *command: str) -> None:
        """Run a server at the far end, until the link is taken down."""
        inside = ["nsenter", f"--net=/run/netns/{self._server}", *command]
        self._stack.callback(_end, subprocess.Popen([*_PREFERRED, *inside], stdin=subprocess.DEVNULL))

    def received(self) -> int:
        """Bytes that came to the near end since the last `reset`, with all headers."""
        return int(json.loads(self.tell("stats"))["down"]["bytes"])

    def log(self) -> str:
        """What nginx has logged."""
        return (self._home / "access.log").read_text(encoding="utf-8")

    def __enter__(self) -> Lab:
        with self._stack:
            self._open()
            self._stack = self._stack.pop_all()
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, at: TracebackType | None) -> None:
        self._stack.close()

    def _open(self) -> None:
        self._home = Path(self._stack.enter_context(tempfile.TemporaryDirectory(prefix="perfkit-link-")))
        self._client, self._server = (f"{end}-{self._home.name[-8:]}" for end in ("near", "far"))
        for name in (self._client, self._server):
            _ip("netns", "add", name)
            self._stack.callback(_ip, "netns", "del", name)
            _ip("-n", name, "link", "set", "lo", "up")
        program = str(Path(_built().name) / "wan")
        # A busy machine is not to make the link late: it comes first.
        command = ["chrt", "-r", "1", program, "--a", self._client, "--b", self._server, *self._link.options()]
        self._wan = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
        self._stack.callback(_end, self._wan)
        assert self._wan.stdout is not None
        if self._wan.stdout.readline() != b"ready\n":
            raise RuntimeError("the link did not come up; it needs root and /dev/net/tun")
        for name, own, other in ((self._client, CLIENT, SERVER), (self._server, SERVER, CLIENT)):
            _ip("-n", name, "addr", "add", own, "dev", "wan0")
            _ip("-n", name, "link", "set", "wan0", "up")
            # By route, since a namespace may not set a default that the machine's sysctl does not allow.
            _ip("-n", name, "route", "add", other, "dev", "wan0", "congctl", "cubic")
            words = [f"{key}={value}" for key, value in _SYSCTLS.items()]
            subprocess.run(["nsenter", f"--net=/run/netns/{name}", "sysctl", "-q", "-w", *words], check=True)
        self._serve()

    def _serve(self) -> None:
        home = self._home
        self.ca = home / "cert.pem"
        (home / "nginx.conf").write_text(_NGINX.format(home=home, site=self._site, server=SERVER), encoding="utf-8")
        make = "openssl req -x509 -newkey rsa:2048 -nodes -days 3 -subj /CN=perfkit"
        names = [
            "-addext",
            "keyUsage=digitalSignature,keyCertSign",
            "-addext",
            f"subjectAltName=IP:{SERVER}",
            "-keyout",
            str(home / "key.pem"),
            "-out",
            str(self.ca),
        ]
        subprocess.run([*make.split(), *names], check=True, capture_output=True)
        nginx = shutil.which("nginx", path=_PATH) or "nginx"
        command = [nginx, "-p", f"{home}/", "-c", f"{home}/nginx.conf", "-e", f"{home}/error.log"]
        inside = ["nsenter", f"--net=/run/netns/{self._server}"]
        server = subprocess.Popen([*_PREFERRED, *inside, *command], stdin=subprocess.DEVNULL)
        self._stack.callback(_end, server)
        probe = [*inside, "curl", "-s", "-o", "/dev/null", "--max-time", "1", f"http://{SERVER}/"]
        for _ in range(100):
            if subprocess.run(probe, check=False).returncode == 0:
                return
            time.sleep(0.1)
        raise RuntimeError(f"nginx did not start: {(home / 'error.log').read_text(encoding='utf-8')}")


@functools.cache
def _built() -> tempfile.TemporaryDirectory[str]:
    """The directory with the link's program, for as long as this process lasts."""
    directory = tempfile.TemporaryDirectory(prefix="perfkit-wan-")
    subprocess.run(["gcc", "-O2", "-std=gnu11", "-o", f"{directory.name}/wan", HERE / "wan.c"], check=True)
    return directory


def missing() -> list[str]:
    """What a link needs and this machine has not."""
    absent = [program for program in PROGRAMS if shutil.which(program, path=_PATH) is None]
    absent += [] if os.geteuid() == 0 else ["root"]
    return absent + ([] if os.path.exists("/dev/net/tun") else ["/dev/net/tun"])


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True)


def _end(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(5)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
