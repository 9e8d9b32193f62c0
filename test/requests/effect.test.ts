import { createServer } from "node:http"
import { HttpRouter, HttpServer, type HttpServerResponse } from "@effect/platform"
import { NodeHttpServer } from "@effect/platform-node"
import type * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import { RequestTransaction } from "effect-db"
import type { Audit, Db } from "../fixtures/databases.js"
import { handlers } from "../suites/requests/effects.js"
import { effectSite, parts } from "../suites/requests/site.js"
import { requests } from "../suites/requests.js"

type Router = HttpRouter.HttpRouter<unknown, Audit | Db>

const nothing: Router = HttpRouter.empty

const add = (
  router: Router,
  [name, handler]: readonly [string, Effect.Effect<HttpServerResponse.HttpServerResponse, unknown, Audit | Db>]
): Router => HttpRouter.post(router, `/${name}`, handler)

const routes = Object.entries(handlers).reduce(add, nothing)

/** Each part of the server has the middleware around its handlers. */
const inside = parts.reduce(
  (router: Router, { checkFirst, prefix }) =>
    HttpRouter.mount(router, prefix, HttpRouter.use(routes, RequestTransaction.middleware({ checkFirst }))),
  nothing
)

const listening = NodeHttpServer.layer(createServer, { port: 0, host: "127.0.0.1" })

requests("the Effect server", effectSite(Layer.provideMerge(HttpServer.serve(inside), listening)))
