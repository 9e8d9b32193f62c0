import { Readable } from "node:stream"
import express from "express"
import { listening } from "../support/suites/requests/listen.js"
import { parts, plainSite, type Serve, tenantHeader } from "../support/suites/requests/site.js"
import { requests } from "../support/suites/requests.js"

const serve: Serve = (runtime, handlers) => {
  const app = express()
  // Express must not print the errors that the tests cause
  app.set("env", "test")
  const inTenant: express.RequestHandler = (request, _, next) => {
    const tenant = request.get(tenantHeader)
    if (tenant === undefined) next()
    else runtime.withTenant(next, tenant)
  }
  for (const { checkFirst, prefix, tenants } of parts) {
    const router = express.Router()
    const inUnit = runtime.middleware({ checkFirst })
    router.use(tenants === "around" ? [inTenant, inUnit] : [inUnit, inTenant])
    for (const [name, handle] of Object.entries(handlers)) {
      router.post(`/${name}`, async (_, response) => {
        const { body, status } = await handle()
        response.status(status)
        if (body === undefined) response.end()
        else if (typeof body === "string") response.type("text").send(body)
        else Readable.from(body).pipe(response)
      })
    }
    app.use(prefix, router)
  }
  return listening(app.listen(0, "127.0.0.1"))
}

requests("Express", plainSite(serve))
