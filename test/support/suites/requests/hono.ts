/** A middleware for Hono, which makes the handlers after it one unit of work. */
import type { DatabaseRuntime } from "effect-db"
import type { MiddlewareHandler } from "hono"
import type { Runtime } from "./plain.js"

export const inUnit =
  (runtime: Pick<Runtime, "handler">, options?: DatabaseRuntime.HandlerOptions): MiddlewareHandler =>
  async (c, next) => {
    const handle = runtime.handler(async () => {
      await next()
      return c.res
    }, options)
    const answer = await handle(c.req.raw)
    if (answer === c.res) return
    // otherwise the answer would inherit the headers of the response that it replaces
    c.res = undefined
    c.res = answer
  }
