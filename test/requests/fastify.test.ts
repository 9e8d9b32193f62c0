import { Readable } from "node:stream"
import { fastify } from "fastify"
import { portOf } from "../suites/requests/listen.js"
import { parts, plainSite, type Serve } from "../suites/requests/site.js"
import { requests } from "../suites/requests.js"

const serve: Serve = async (runtime, handlers) => {
  const app = fastify({ forceCloseConnections: true })
  for (const { checkFirst, prefix } of parts) {
    const middleware = runtime.middleware({ checkFirst })
    app.register(
      async (part) => {
        part.addHook("preHandler", (request, reply, done) => middleware(request.raw, reply.raw, done))
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
