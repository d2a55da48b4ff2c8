"""The servers and caches: where each comes from, and how it is started. All with their default settings as far as they
have any, since that is what people run."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
ALL = os.environ.get("PERFKIT_TEST_SERVERS") == "all"  # as `tox -e servers` says


@dataclass(frozen=True)
class Server:
    """A server of static files, or a cache in front of one.

    In `command` and `config`, `<home>` is a directory for its own files, `<www>` is the directory to serve, `<host>`
    and `<port>` are where it listens, `<origin>` is host and port of the server behind a cache, and `<modules>` is
    where npm's packages are.

    Attributes:
        package: `apt:`, `pip:` or `npm:` and a name; whose version the results give.
        command: the arguments to start it with, in the foreground.
        config: what `<home>/config` has in it.
        prepare: a command to run before.
        in_suite: whether the normal suite runs it, and not only `tox -e servers`.
        unprivileged: it does not run as root; the user nobody starts it, then.
        prefix: of every path in its URLs.
        keeps_etags: its ETag stays when a file changes, so that nothing tells two versions of one second apart.
    """

    name: str
    package: str
    command: str
    config: str = ""
    prepare: str = ""
    in_suite: bool = False
    unprivileged: bool = False
    cache: bool = False
    prefix: str = ""
    keeps_etags: bool = False


def _python(name: str, package: str, framework: str, **options: Any) -> Server:
    command = f"{sys.executable} {HERE}/python_servers.py {framework} <www> <host> <port>"
    return Server(name, f"pip:{package}", command, **options)


def _node(name: str, package: str, framework: str) -> Server:
    return Server(name, f"npm:{package}", f"node {HERE}/node_servers.cjs {framework} <www> <host> <port>")


def _npm_program(package: str, command: str) -> Server:
    return Server(package, f"npm:{package}", f"node <modules>/{command}")


_NGINX = """
daemon off; worker_processes 1; pid <home>/pid; error_log <home>/error.log;
events { worker_connections 256; }
http {
    types { text/html html; text/plain txt; application/gzip gz; } default_type application/octet-stream;
    client_body_temp_path <home>/t1; proxy_temp_path <home>/t2; fastcgi_temp_path <home>/t3;
    uwsgi_temp_path <home>/t4; scgi_temp_path <home>/t5;
    ACCESS
    SERVER
}
"""
_SERVE = "server { listen <host>:<port>; root <www>; LOCATION }"
# A cache's origin: what it counts as sent is what the cache has cost it. What is changed by a check is fresh for a
# second, and what is only fetched for an hour.
ORIGIN = Server(
    "origin",
    "apt:nginx-light",
    "nginx -e <home>/error.log -c <home>/config",
    _NGINX.replace(
        "ACCESS", "log_format sent '$body_bytes_sent $request_uri'; access_log <home>/sent.log sent;"
    ).replace(
        "SERVER",
        _SERVE.replace(
            "LOCATION",
            "location / { add_header Cache-Control max-age=1; }"
            " location /lasting/ { add_header Cache-Control max-age=3600; limit_rate 4m; }",
        ),
    ),
)

_APACHE_MODULES = "".join(
    f"LoadModule {name}_module /usr/lib/apache2/modules/mod_{name}.so\n" for name in ("mpm_event", "authz_core", "mime")
)
_APACHE = f"""
ServerName localhost
Listen <host>:<port>
PidFile <home>/pid
ErrorLog <home>/error.log
Mutex file:<home>
{_APACHE_MODULES}
TypesConfig /etc/mime.types
"""

SERVERS = (
    Server(
        "nginx",
        "apt:nginx-light",
        "nginx -e <home>/error.log -c <home>/config",
        _NGINX.replace("ACCESS", "access_log off;").replace("SERVER", _SERVE.replace("LOCATION", "")),
        in_suite=True,
        unprivileged=True,
    ),
    Server(
        "Apache httpd",
        "apt:apache2-bin",
        "apache2 -X -f <home>/config",
        _APACHE + 'DocumentRoot <www>\n<Directory "<www>">\nRequire all granted\n</Directory>\n',
        in_suite=True,
        unprivileged=True,
    ),
    Server("lighttpd", "apt:lighttpd", "lighttpd -D -f <home>/config",
           'server.document-root = "<www>"\nserver.bind = "<host>"\nserver.port = <port>\n'
           'include_shell "/usr/share/lighttpd/create-mime.conf.pl"\n'),
    Server("Caddy", "apt:caddy", "caddy run --adapter caddyfile --config <home>/config",
           "{\nadmin off\nauto_https off\n}\nhttp://:<port> {\nbind <host>\nroot * <www>\nfile_server\n}\n"),
    Server("h2o", "apt:h2o", "h2o -c <home>/config",
           "listen: {host: <host>, port: <port>}\nerror-log: <home>/error.log\npid-file: <home>/pid\n"
           "hosts:\n  default:\n    paths:\n      /:\n        file.dir: <www>\n", unprivileged=True),
    Server("busybox httpd", "apt:busybox", "busybox httpd -f -p <host>:<port> -h <www>"),
    Server("webfs", "apt:webfs", "webfsd -F -i <host> -p <port> -r <www>"),
    Server("CivetWeb", "apt:civetweb", "civetweb -listening_ports <host>:<port> -document_root <www>"),
    Server("mini_httpd", "apt:mini-httpd", "mini_httpd -D -h <host> -p <port> -d <www>", unprivileged=True),
    Server("PHP's built-in server", "apt:php8.2-cli", "php8.2 -S <host>:<port> -t <www>"),
    Server("WEBrick", "apt:ruby-webrick", "ruby -run -e httpd <www> --bind-address=<host> --port=<port>"),
    Server("Rack on Puma", "apt:ruby-rack", "puma --bind tcp://<host>:<port> <home>/config.ru",
           "run Rack::Files.new('<www>')", prepare="mv <home>/config <home>/config.ru"),
    Server("Plack", "apt:libplack-perl", "plackup --host <host> --port <port> <home>/config",
           "use Plack::App::File; Plack::App::File->new(root => '<www>')->to_app;"),
    Server("http.server", "python:http.server",
           f"{sys.executable} -m http.server --bind <host> --directory <www> <port>", in_suite=True),
    _python("Flask", "flask", "flask"),
    _python("Django's serve", "django", "django"),
    _python("Django's FileResponse", "django", "django_fileresponse"),
    _python("WhiteNoise", "whitenoise", "whitenoise"),
    _python("Starlette", "starlette", "starlette"),
    _python("FastAPI's FileResponse", "fastapi", "fastapi"),
    _python("Litestar", "litestar", "litestar"),
    _python("Quart", "quart", "quart"),
    _python("Sanic", "sanic", "sanic"),
    _python("Falcon", "falcon", "falcon"),
    _python("Bottle", "bottle", "bottle"),
    _python("aiohttp", "aiohttp", "aiohttp"),
    _python("Tornado", "tornado", "tornado", keeps_etags=True),
    _python("Twisted", "twisted", "twisted"),
    _python("CherryPy", "cherrypy", "cherrypy"),
    _python("CherryPy with ETags", "cherrypy", "cherrypy_etags"),
    _python("WsgiDAV", "wsgidav", "wsgidav"),
    _python("Moto's S3", "moto", "moto", prefix="bucket/"),
    Server("RangeHTTPServer", "pip:rangehttpserver",
           f"{sys.executable} -m RangeHTTPServer --bind <host> <port>"),
    _node("Express", "express", "express"),
    _node("Fastify", "@fastify/static", "fastify"),
    _node("hapi", "@hapi/inert", "hapi"),
    _node("Koa", "koa-send", "koa"),
    _node("koa-range", "koa-range", "koa_range"),
    _node("Hono", "@hono/node-server", "hono"),
    _node("ecstatic", "ecstatic", "ecstatic"),
    _node("sirv", "sirv", "sirv"),
    _npm_program("serve", "serve/build/main.js --no-clipboard --listen tcp://<host>:<port> <www>"),
    _npm_program("http-server", "http-server/bin/http-server <www> -a <host> -p <port> -c-1 -s"),
    _npm_program("local-web-server", "local-web-server/bin/cli.js --hostname <host> --port <port> --directory <www>"),
)  # fmt: skip

CACHES = (
    Server(
        "Squid", "apt:squid", "squid -n perfkit<user> -N -f <home>/config",  # -n: for shared memory
        "http_port <host>:<port> accel defaultsite=origin no-vhost\n"
        "cache_peer <origin_host> parent <origin_port> 0 no-query originserver\n"
        "http_access allow all\ncache_mem 64 MB\nmaximum_object_size 64 MB\nmaximum_object_size_in_memory 8 MB\n"
        "pid_filename <home>/pid\naccess_log none\ncache_log <home>/log\ncoredump_dir <home>\n"
        "shutdown_lifetime 0 seconds\nnetdb_filename none\npinger_enable off\n",
        cache=True, in_suite=True, unprivileged=True,
    ),
    Server(
        "Varnish", "apt:varnish",
        "varnishd -F -n <home>/varnish -a <host>:<port> -b <origin> -s malloc,64m -p default_grace=0 -j none",
        cache=True, unprivileged=True,
    ),
    Server(
        "nginx proxy_cache", "apt:nginx-light", "nginx -e <home>/error.log -c <home>/config",
        _NGINX.replace("ACCESS", "access_log off; proxy_cache_path <home>/cache keys_zone=all:1m;").replace(
            "SERVER",
            "server { listen <host>:<port>; location / { proxy_pass http://<origin>; proxy_cache all;"
            " proxy_cache_valid 1m; proxy_cache_revalidate on; } }",
        ),
        cache=True, unprivileged=True,
    ),
    Server(
        "HAProxy", "apt:haproxy", "haproxy -db -f <home>/config",
        "global\n  maxconn 100\ndefaults\n  mode http\n  timeout client 60s\n  timeout server 60s\n"
        "  timeout connect 10s\n"
        "cache files\n  total-max-size 64\n  max-object-size 8000000\n  max-age 60\n"
        "frontend all\n  bind <host>:<port>\n  default_backend origin\n"
        "backend origin\n  http-request cache-use files\n  http-response cache-store files\n  server origin <origin>\n",
        cache=True,
    ),
    Server(
        "Apache mod_cache", "apt:apache2-bin", "apache2 -X -f <home>/config",
        _APACHE
        + "".join(
            f"LoadModule {name}_module /usr/lib/apache2/modules/mod_{name}.so\n"
            for name in ("proxy", "proxy_http", "cache", "cache_disk")
        )
        + "CacheRoot <home>/cache\nCacheEnable disk /\nCacheMaxFileSize 64000000\nCacheQuickHandler on\n"
        "ProxyPass / http://<origin>/\n",
        prepare="mkdir <home>/cache", cache=True, unprivileged=True,
    ),
    Server(
        "Apache Traffic Server", "apt:trafficserver", "env PROXY_CONFIG_CONFIG_DIR=<home>/etc traffic_server",
        cache=True, unprivileged=True,
        prepare=f"sh {HERE}/traffic_server.sh <home> <host> <port> <origin>",
    ),
)  # fmt: skip
