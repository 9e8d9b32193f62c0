/**
 * HTTP servers side by side: the cost of a unit of work for a request that needs none, and the
 * speed of a request with one transaction.
 */
import { createServer } from "node:http"
import type * as HttpApp from "@effect/platform/HttpApp"
import * as HttpMiddleware from "@effect/platform/HttpMiddleware"
import * as HttpRouter from "@effect/platform/HttpRouter"
import * as HttpServerResponse from "@effect/platform/HttpServerResponse"
import * as NodeHttpServer from "@effect/platform-node/NodeHttpServer"
import { PgClient } from "@effect/sql-pg"
import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as Redacted from "effect/Redacted"
import { Database, RequestTransaction } from "effect-db"
import Fastify from "fastify"
import pg from "pg"
import { load } from "./load.js"
import { fill, median } from "./rates.js"
import { anyId, operations, selectText, updateText } from "./subjects.js"

interface Options {
  readonly rounds: number
  readonly ms: number
  readonly only: string | undefined
}

class Db extends Database.Service<Db>()("bench") {}

const connections = 64
const maxConnections = 10
/** The number of rounds until the code is optimized and the connections are open. */
const warmUp = 3

interface Site {
  readonly name: string
  readonly port: number
  readonly path: string
}

const done = HttpServerResponse.unsafeJson({ ok: true })
const nothing = HttpRouter.empty.pipe(HttpRouter.post("/", Effect.succeed(done)))

/** A service that a middleware provides to its handlers, to show what any such middleware costs. */
class Something extends Context.Tag("bench/Something")<Something, number>() {}
const providing = HttpRouter.use(nothing, (app) => Effect.provideService(app, Something, 1))

const serve = <E, R>(name: string, app: HttpApp.Default<E, R>) =>
  Effect.gen(function* () {
    const server = yield* NodeHttpServer.make(() => createServer({ keepAliveTimeout: 0 }), {
      port: 0,
      host: "127.0.0.1"
    })
    yield* server.serve(app)
    const { address } = server
    return { name, path: "/", port: address._tag === "TcpAddress" ? address.port : 0 }
  })

const fastify = (name: string, handle: () => Promise<object>) =>
  Effect.gen(function* () {
    const server = Fastify({ keepAliveTimeout: 0 })
    server.post("/", handle)
    yield* Effect.acquireRelease(
      Effect.promise(() => server.listen({ port: 0, host: "127.0.0.1" })),
      () => Effect.promise(() => server.close())
    )
    const address = server.server.address()
    return { name, path: "/", port: typeof address === "object" ? (address?.port ?? 0) : 0 }
  })

/** Returns a handler with a transaction that is written by hand. */
const byHand = (clients: pg.Pool) => async () => {
  const client = await clients.connect()
  const id = anyId()
  try {
    await client.query("BEGIN")
    await client.query(selectText, [id])
    await client.query(updateText, [id])
    await client.query("COMMIT")
  } catch (error) {
    await client.query("ROLLBACK")
    throw error
  } finally {
    client.release()
  }
  return { ok: true }
}

const sites = (url: string) =>
  Effect.gen(function* () {
    const writer = Redacted.make(url)
    const clients = yield* Effect.acquireRelease(
      Effect.sync(() => new pg.Pool({ connectionString: url, max: maxConnections })),
      (clients) => Effect.promise(() => clients.end())
    )
    const opened = yield* Layer.build(
      Layer.merge(Db.layer({ writer, maxConnections }), PgClient.layer({ url: writer, maxConnections }))
    )
    const plain = yield* Effect.provide(PgClient.PgClient, opened)
    const ours = yield* Effect.provide(Db.writer, opened)
    const transactional = <E, R>(router: HttpRouter.HttpRouter<E, R>) =>
      HttpRouter.use(router, RequestTransaction.middleware())
    const { body } = operations(ours)
    const plainBody = plain.withTransaction(operations(plain).body)
    return [
      yield* serve("nothing, without the middleware", nothing),
      yield* serve("nothing, with it", transactional(nothing)),
      yield* serve("nothing, a service provided", providing),
      yield* fastify("Fastify, nothing", async () => ({ ok: true })),
      yield* serve("effect-db", transactional(HttpRouter.empty.pipe(HttpRouter.post("/", Effect.as(body, done))))),
      // for the comparison with Fastify, which makes no spans
      yield* Effect.locally(
        serve("effect-db, no spans", transactional(HttpRouter.empty.pipe(HttpRouter.post("/", Effect.as(body, done))))),
        HttpMiddleware.currentTracerDisabledWhen,
        () => true
      ),
      yield* serve("@effect/sql-pg", HttpRouter.empty.pipe(HttpRouter.post("/", Effect.as(plainBody, done)))),
      yield* fastify("Fastify, pg", byHand(clients))
    ]
  })

/** Shuffles the sites for each round, because a heavy one affects the one after it. */
const shuffled = <A>(all: ReadonlyArray<A>): ReadonlyArray<A> =>
  all
    .map((one) => ({ one, at: Math.random() }))
    .sort((a, b) => a.at - b.at)
    .map(({ one }) => one)

/** Measures the requests per second of each site, in turns. */
const measure = async (all: ReadonlyArray<Site>, { ms, rounds }: Options) => {
  const loads = all.map((site) => ({ site, load: load({ ...site, connections }), seen: [] as number[] }))
  for (let round = -warmUp; round < rounds; round++) {
    for (const { load, seen, site } of shuffled(loads)) {
      const { bad, good, ms: took } = await load.turn(ms)
      if (bad > 0) throw new Error(`${site.name}: ${bad} of ${good + bad} requests were not answered well`)
      if (round >= 0) seen.push(good / (took / 1000))
    }
    if (process.stderr.isTTY) process.stderr.write(`round ${round + 1} of ${rounds}\r`)
  }
  await Promise.all(loads.map(({ load }) => load.stop()))
  return loads.map(({ seen, site }) => ({ name: site.name, seen }))
}

/** Returns the median of the ratios within each round, in which a disturbance affects both. */
const ratio = (a: ReadonlyArray<number>, b: ReadonlyArray<number>): string =>
  median(a.map((rate, i) => rate / (b[i] ?? Number.NaN))).toFixed(3)

export const requests = async (url: string, options: Options): Promise<void> => {
  await fill(url)
  await Effect.gen(function* () {
    const all = yield* sites(url)
    const chosen = all.filter(({ name }) => options.only === undefined || name === options.only)
    // writes leave the database work for later, which would slow down the sites without writes
    const rates = yield* Effect.promise(async () => [
      ...(await measure(
        chosen.filter(({ name }) => name.includes("nothing")),
        options
      )),
      ...(await measure(
        chosen.filter(({ name }) => !name.includes("nothing")),
        options
      ))
    ])
    console.log(
      `requests per second on ${connections} connections, medians of ${options.rounds} rounds of ${options.ms} ms, ${maxConnections} database connections each\n`
    )
    for (const { name, seen } of rates) console.log(`${name.padEnd(34)}${String(Math.round(median(seen))).padStart(8)}`)
    const [without, middle, service, idle, ours, bare, plain, fastify] = rates.map(({ seen }) => seen)
    const compare = (what: string, a: ReadonlyArray<number> | undefined, b: ReadonlyArray<number> | undefined) => {
      if (a !== undefined && b !== undefined) console.log(`${what.padEnd(68)}${ratio(a, b)}`)
    }
    console.log()
    compare("a request that touches no database, with / without the middleware", middle, without)
    compare("the same with a middleware that only provides a service", service, without)
    compare("a request with one transaction, effect-db / @effect/sql-pg", ours, plain)
    compare("a request with one transaction, effect-db / Fastify with pg", ours, fastify)
    compare("the same without the spans that Fastify does not make", bare, fastify)
    compare("a request that does nothing, Effect's server / Fastify", without, idle)
  }).pipe(Effect.scoped, Effect.runPromise)
}
