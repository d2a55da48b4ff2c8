#!/bin/sh
# Install the servers and clients of tests/servers that apt and npm have (Debian, root):  sh install.sh DIRECTORY
set -e
apt-get update -qq
# Installed, Debian's servers would be started; a machine that tests on has no use for that.
DEBIAN_FRONTEND=noninteractive RUNLEVEL=1 apt-get install -y -qq --no-install-recommends \
    apache2-bin aria2 busybox caddy civetweb curl h2o haproxy libplack-perl lighttpd mime-support mini-httpd nginx-light \
    nodejs php8.2-cli puma ruby-rack ruby-webrick squid trafficserver varnish webfs wget2 zsync > /dev/null
command -v npm > /dev/null || DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends npm > /dev/null
mkdir -p "$1"
npm install --prefix "$1" --loglevel error --no-audit --no-fund --ignore-scripts \
    @fastify/static @hapi/hapi @hapi/inert @hono/node-server ecstatic express fastify hono http-server koa koa-range \
    koa-send local-web-server serve sirv
