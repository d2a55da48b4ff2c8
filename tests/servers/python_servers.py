"""Static files as Python's frameworks serve them:  python python_servers.py FRAMEWORK DIRECTORY HOST PORT"""

from __future__ import annotations

import sys
import threading
import urllib.request
from pathlib import Path
from typing import Any


def flask(root: str, host: str, port: int) -> None:
    from flask import Flask, send_from_directory

    app = Flask(__name__)
    app.add_url_rule("/<path:name>", view_func=lambda name: send_from_directory(root, name), endpoint="files")
    _wsgi_threads(app, host, port)


def django(root: str, host: str, port: int) -> None:
    """`django.views.static.serve`, as `runserver` uses it for media files."""
    from django.conf import settings
    from django.core.wsgi import get_wsgi_application
    from django.urls import re_path
    from django.views.static import serve

    settings.configure(ROOT_URLCONF=__name__, ALLOWED_HOSTS=["*"], SECRET_KEY="-")
    globals()["urlpatterns"] = [re_path(r"^(?P<path>.*)$", serve, {"document_root": root})]
    _wsgi_threads(get_wsgi_application(), host, port)


def django_fileresponse(root: str, host: str, port: int) -> None:
    """`FileResponse`, as in a view of one's own."""
    from django.conf import settings
    from django.core.wsgi import get_wsgi_application
    from django.http import FileResponse, Http404
    from django.urls import re_path

    def view(request: Any, path: str) -> Any:
        try:
            return FileResponse((Path(root) / path).open("rb"))
        except OSError:
            raise Http404 from None

    settings.configure(ROOT_URLCONF=__name__, ALLOWED_HOSTS=["*"], SECRET_KEY="-")
    globals()["urlpatterns"] = [re_path(r"^(?P<path>.*)$", view)]
    _wsgi_threads(get_wsgi_application(), host, port)


def whitenoise(root: str, host: str, port: int) -> None:
    from whitenoise import WhiteNoise

    def absent(environ: Any, start_response: Any) -> list[bytes]:
        start_response("404 Not Found", [])
        return []

    _waitress(WhiteNoise(absent, root=root, autorefresh=True), host, port)


def bottle(root: str, host: str, port: int) -> None:
    import bottle

    app = bottle.Bottle()
    app.route("/<name:path>", callback=lambda name: bottle.static_file(name, root=root))
    _waitress(app, host, port)


def falcon(root: str, host: str, port: int) -> None:
    import falcon

    app = falcon.App()
    app.add_static_route("/", root)
    _waitress(app, host, port)


def wsgidav(root: str, host: str, port: int) -> None:
    from cheroot.wsgi import Server
    from wsgidav.wsgidav_app import WsgiDAVApp

    config = {"provider_mapping": {"/": root}, "simple_dc": {"user_mapping": {"*": True}}, "verbose": 0}
    Server((host, port), WsgiDAVApp(config)).start()


def cherrypy(root: str, host: str, port: int) -> None:
    import cherrypy

    cherrypy.config.update({"server.socket_host": host, "server.socket_port": port, "engine.autoreload.on": False})
    static = {"tools.staticdir.on": True, "tools.staticdir.dir": root}
    cherrypy.quickstart(type("Root", (), {})(), "/", {"/": static})


def cherrypy_etags(root: str, host: str, port: int) -> None:
    import cherrypy

    cherrypy.config.update({"server.socket_host": host, "server.socket_port": port, "engine.autoreload.on": False})
    static = {"tools.staticdir.on": True, "tools.staticdir.dir": root}
    etags = {"tools.etags.on": True, "tools.etags.autotags": True}
    cherrypy.quickstart(type("Root", (), {})(), "/", {"/": {**static, **etags}})


def starlette(root: str, host: str, port: int) -> None:
    from starlette.applications import Starlette
    from starlette.routing import Mount
    from starlette.staticfiles import StaticFiles

    _uvicorn(Starlette(routes=[Mount("/", StaticFiles(directory=root))]), host, port)


def fastapi(root: str, host: str, port: int) -> None:
    """`FileResponse`, as in a view of one's own."""
    from fastapi import FastAPI
    from fastapi.responses import FileResponse

    app = FastAPI()
    app.get("/{name:path}")(lambda name: FileResponse(Path(root) / name))
    _uvicorn(app, host, port)


def litestar(root: str, host: str, port: int) -> None:
    from litestar import Litestar
    from litestar.static_files import create_static_files_router

    _uvicorn(Litestar([create_static_files_router(path="/", directories=[root])]), host, port)


def quart(root: str, host: str, port: int) -> None:
    from quart import Quart, send_from_directory

    app = Quart(__name__)

    @app.get("/<path:name>")
    async def files(name: str) -> Any:
        return await send_from_directory(root, name)

    app.run(host=host, port=port)


def sanic(root: str, host: str, port: int) -> None:
    from sanic import Sanic

    app = Sanic("files")
    app.static("/", root)
    app.run(host=host, port=port, single_process=True, access_log=False)


def aiohttp(root: str, host: str, port: int) -> None:
    from aiohttp import web

    app = web.Application()
    app.router.add_static("/", root)
    web.run_app(app, host=host, port=port)


def tornado(root: str, host: str, port: int) -> None:
    import asyncio

    from tornado.web import Application, StaticFileHandler

    async def main() -> None:
        Application([(r"/(.*)", StaticFileHandler, {"path": root})]).listen(port, host)
        await asyncio.Event().wait()

    asyncio.run(main())


def twisted(root: str, host: str, port: int) -> None:
    from twisted.internet import reactor
    from twisted.web.server import Site
    from twisted.web.static import File

    reactor.listenTCP(port, Site(File(root)), interface=host)  # type: ignore[attr-defined]
    reactor.run()  # type: ignore[attr-defined]


def moto(root: str, host: str, port: int) -> None:
    """S3, with a bucket that anyone may write to; the directory is not used."""
    from moto.server import ThreadedMotoServer

    ThreadedMotoServer(ip_address=host, port=port).start()
    urllib.request.urlopen(urllib.request.Request(f"http://{host}:{port}/bucket", method="PUT"))
    threading.Event().wait()


def _wsgi_threads(app: Any, host: str, port: int) -> None:
    from werkzeug.serving import run_simple

    run_simple(host, port, app, threaded=True)


def _waitress(app: Any, host: str, port: int) -> None:
    from waitress import serve

    serve(app, host=host, port=port)


def _uvicorn(app: Any, host: str, port: int) -> None:
    import uvicorn

    uvicorn.run(app, host=host, port=port, log_level="warning")


if __name__ == "__main__":
    sys.path.pop(0)  # this file's directory
    _, framework, directory, address, number = sys.argv
    globals()[framework](directory, address, int(number))
