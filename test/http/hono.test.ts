import { createServer } from "node:http"
import { getRequestListener } from "@hono/node-server"
import { Hono, type MiddlewareHandler } from "hono"
import { stream } from "hono/streaming"
import type { StatusCode } from "hono/utils/http-status"
import { inUnit } from "../support/suites/requests/hono.js"
import { listening } from "../support/suites/requests/listen.js"
import { parts, plainSite, type Serve, tenantHeader } from "../support/suites/requests/site.js"
import { requests } from "../support/suites/requests.js"

const serve: Serve = (runtime, handlers) => {
  const app = new Hono()
  app.onError((_, c) => c.text("an error", 500))
  const inTenant: MiddlewareHandler = (c, next) => {
    const tenant = c.req.header(tenantHeader)
    return tenant === undefined ? next() : runtime.withTenant(next, tenant)
  }
  for (const { checkFirst, prefix, tenants } of parts) {
    const part = new Hono()
    if (tenants === "around") part.use(inTenant)
    part.use(inUnit(runtime, { checkFirst }))
    if (tenants === "inside") part.use(inTenant)
    for (const [name, handle] of Object.entries(handlers)) {
      part.post(`/${name}`, async (c) => {
        const { body, status } = await handle()
        // Hono's type has a list of statuses that is not complete
        c.status(status as StatusCode)
        if (body === undefined) return c.body(null)
        if (typeof body === "string") return c.text(body)
        return stream(c, async (out) => {
          for await (const part of body) await out.write(part)
        })
      })
    }
    app.route(prefix, part)
  }
  return listening(createServer(getRequestListener(app.fetch)).listen(0, "127.0.0.1"))
}

requests("Hono", plainSite(serve))
