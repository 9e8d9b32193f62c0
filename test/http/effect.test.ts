import { createServer } from "node:http"
import { HttpMiddleware, HttpRouter, HttpServer, HttpServerRequest, type HttpServerResponse } from "@effect/platform"
import { NodeHttpServer } from "@effect/platform-node"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import { RequestTransaction, Tenant } from "effect-db"
import type { Audit, Db } from "../support/databases.js"
import { handlers } from "../support/suites/requests/effects.js"
import { effectSite, parts, tenantHeader } from "../support/suites/requests/site.js"
import { requests } from "../support/suites/requests.js"

type Router = HttpRouter.HttpRouter<unknown, Audit | Db>

const nothing: Router = HttpRouter.empty

const add = (
  router: Router,
  [name, handler]: readonly [string, Effect.Effect<HttpServerResponse.HttpServerResponse, unknown, Audit | Db>]
): Router => HttpRouter.post(router, `/${name}`, handler)

const routes = Object.entries(handlers).reduce(add, nothing)

const inTenant = HttpMiddleware.make((app) =>
  Effect.flatMap(HttpServerRequest.HttpServerRequest, ({ headers }) => {
    const tenant = headers[tenantHeader]
    return tenant === undefined ? app : Tenant.withTenant(app, tenant)
  })
)

/** The parts of the server, each with the middleware around its handlers. */
const inside = parts.reduce((router: Router, { checkFirst, prefix, tenants }) => {
  const inUnit = RequestTransaction.middleware({ checkFirst })
  const part =
    tenants === "around"
      ? HttpRouter.use(HttpRouter.use(routes, inUnit), inTenant)
      : HttpRouter.use(HttpRouter.use(routes, inTenant), inUnit)
  return HttpRouter.mount(router, prefix, part)
}, nothing)

const listening = NodeHttpServer.layer(createServer, { port: 0, host: "127.0.0.1" })

requests("the Effect server", effectSite(Layer.provideMerge(HttpServer.serve(inside), listening)))
