import { Readable } from "node:stream"
import { fastify, type preHandlerHookHandler } from "fastify"
import { portOf } from "../support/suites/requests/listen.js"
import { parts, plainSite, type Serve, tenantHeader } from "../support/suites/requests/site.js"
import { requests } from "../support/suites/requests.js"

const serve: Serve = async (runtime, handlers) => {
  const app = fastify({ forceCloseConnections: true })
  const inTenant: preHandlerHookHandler = (request, _, done) => {
    const tenant = request.headers[tenantHeader]
    if (tenant === undefined) done()
    else runtime.withTenant(done, tenant)
  }
  for (const { checkFirst, prefix, tenants } of parts) {
    const middleware = runtime.middleware({ checkFirst })
    app.register(
      async (part) => {
        if (tenants === "around") part.addHook("preHandler", inTenant)
        part.addHook("preHandler", (request, reply, done) => middleware(request.raw, reply.raw, done))
        if (tenants === "inside") part.addHook("preHandler", inTenant)
        for (const [name, handle] of Object.entries(handlers)) {
          part.post(`/${name}`, async (_, reply) => {
            const { body, status } = await handle()
            return reply.code(status).send(typeof body === "object" ? Readable.from(body) : body)
          })
        }
      },
      { prefix }
    )
  }
  await app.listen({ port: 0, host: "127.0.0.1" })
  return { port: portOf(app.server), close: () => app.close() }
}

requests("Fastify", plainSite(serve))
