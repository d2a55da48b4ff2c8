// Static files as Node's frameworks serve them:  node node_servers.cjs FRAMEWORK DIRECTORY HOST PORT
"use strict";
const { createServer } = require("node:http");
const { createRequire } = require("node:module");
const [framework, root, host, port] = process.argv.slice(2);
const load = createRequire(process.env.NODE_MODULES + "/");

const frameworks = {
  express() {
    const app = load("express")();
    app.use(load("express").static(root, { dotfiles: "allow" }));
    app.listen(port, host);
  },
  async fastify() {
    const app = load("fastify")();
    app.register(load("@fastify/static"), { root });
    await app.listen({ port, host });
  },
  ecstatic() {
    createServer(load("ecstatic")({ root, cache: "max-age=0" })).listen(port, host);
  },
  sirv() {
    createServer(load("sirv")(root, { dev: true, etag: true })).listen(port, host);
  },
  async hapi() {
    const server = load("@hapi/hapi").server({ port, host });
    await server.register(load("@hapi/inert"));
    server.route({ method: "GET", path: "/{name*}", handler: { directory: { path: root } } });
    await server.start();
  },
  koa() {
    const app = new (load("koa"))();
    const send = load("koa-send");
    app.use((context) => send(context, context.path, { root }));
    app.listen(port, host);
  },
  koa_range() {
    const app = new (load("koa"))();
    const send = load("koa-send");
    app.use(load("koa-range"));
    app.use((context) => send(context, context.path, { root }));
    app.listen(port, host);
  },
  hono() {
    const { serveStatic } = load("@hono/node-server/serve-static");
    const { serve } = load("@hono/node-server");
    const app = new (load("hono").Hono)();
    app.use("/*", serveStatic({ root }));
    serve({ fetch: app.fetch, port: Number(port), hostname: host });
  },
};

frameworks[framework]();
