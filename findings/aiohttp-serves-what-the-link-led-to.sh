#!/usr/bin/env bash
# aiohttp 3.14.5, add_static, with follow_symlinks=True, of a link to the current release; nginx 1.22.1 (Debian 12's
# package) and starlette 1.10.0 with the same link as root.
# Most would guess: who deploys by moving a link (`current` -> `releases/2`, one rename) changes what is served at that
# moment, as with other servers, which look the path up at each request.
# Seen: aiohttp resolves the link once, when the route is added. It goes on serving the old release, with 200, until the
# process ends, and when the old release is removed, 404 for all files, though those of the new one are there. Serve the
# directory above, with `current` in the URL and follow_symlinks=True, or restart the server.
# Needs apt-get and dpkg of Debian 12, and no root.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
(cd "$folder"; apt-get download -q 'nginx=1.22.1-9*' 2>"$folder/apt" || { cat "$folder/apt"; exit 1; })
dpkg -x "$folder"/nginx_*.deb "$folder/nginx"
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q --disable-pip-version-check aiohttp==3.14.5 starlette==1.10.0 uvicorn==0.54.0
chmod 755 "$folder"
"$folder/venv/bin/python" - "$folder" <<'END'
import asyncio, importlib.metadata, os, pathlib, shutil, subprocess, sys
import aiohttp, uvicorn
from aiohttp import web
from starlette.staticfiles import StaticFiles

folder = pathlib.Path(sys.argv[1])
nginx, site = folder / "nginx/usr/sbin/nginx", folder / "site"
for number in "12":
    (site / number).mkdir(parents=True)
    (site / number / "file").write_text(f"release {number}")
(site / "current").symlink_to("1")
temporary = "".join(
    f"{kind}_temp_path {folder}/{kind};" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
)
(folder / "conf").write_text(
    f"daemon off; pid {folder}/pid; error_log {folder}/errors; events {{}} http {{ access_log off; {temporary} "
    f"server {{ listen unix:{folder}/nginx.socket; root {site}/current; }} }}"
)


async def get(name, path="file"):
    async with aiohttp.ClientSession(connector=aiohttp.UnixConnector(f"{folder}/{name}.socket")) as session:
        async with session.get(f"http://server/{path}") as answer:
            return await answer.text() if answer.status == 200 else str(answer.status)


async def main():
    application = web.Application()
    application.router.add_static("/above", site, follow_symlinks=True)
    application.router.add_static("/", site / "current", follow_symlinks=True)
    runner = web.AppRunner(application)
    await runner.setup()
    await web.UnixSite(runner, f"{folder}/aiohttp.socket").start()
    options = uvicorn.Config(
        StaticFiles(directory=site / "current"), uds=f"{folder}/starlette.socket", log_level="warning", lifespan="off"
    )
    asgi = uvicorn.Server(options)
    serving = asyncio.create_task(asgi.serve())
    server = subprocess.Popen([nginx, "-e", folder / "errors", "-p", folder, "-c", folder / "conf"])
    try:
        while not ((folder / "pid").exists() and asgi.started):
            assert server.poll() is None, (folder / "errors").read_text()
            await asyncio.sleep(0.05)
        names = ("aiohttp", "nginx", "starlette")
        found = {name: [await get(name)] for name in names}
        (site / "next").symlink_to("2")
        os.rename(site / "next", site / "current")
        for name in names:
            found[name].append(await get(name))
        above = await get("aiohttp", "above/current/file")
        shutil.rmtree(site / "1")
        for name in names:
            found[name].append(await get(name))
    finally:
        server.terminate()
        server.wait()
        asgi.should_exit = True
        await serving
        await runner.cleanup()
    return found, above


found, above = asyncio.run(main())
version = subprocess.run([nginx, "-v"], capture_output=True, text=True).stderr.strip()
print(f"{version}, {', '.join(f'{name} {importlib.metadata.version(name)}' for name in ('aiohttp', 'starlette'))}")
for name, answers in found.items():
    print(f"{name}: at first, after the link was moved, after the old release was removed: {answers}")
print(f"aiohttp with the directory above: {above}")
assert found["aiohttp"] == ["release 1", "release 1", "404"], "this has changed"
assert found["nginx"] == found["starlette"] == ["release 1", "release 2", "release 2"] and above == "release 2"
END
