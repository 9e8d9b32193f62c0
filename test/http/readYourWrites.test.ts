import { once } from "node:events"
import { createServer } from "node:http"
import * as http2 from "node:http2"
import { HttpRouter, HttpServer, HttpServerResponse } from "@effect/platform"
import { assert, layer } from "@effect/vitest"
import * as Deferred from "effect/Deferred"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Fiber from "effect/Fiber"
import * as Layer from "effect/Layer"
import * as Option from "effect/Option"
import * as Redacted from "effect/Redacted"
import { Consistency, DatabaseError, RequestTransaction } from "effect-db"
import express from "express"
import Pg from "pg"
import {
  act,
  listener,
  name,
  opened,
  own,
  type Sent,
  Site,
  secret,
  send,
  siteOf,
  sites,
  within
} from "../support/causalSites.js"
import { Cluster, cluster, pause, replica, resume } from "../support/cluster.js"
import { Db } from "../support/databases.js"
import { eventually } from "../support/eventually.js"
import { query } from "../support/server.js"
import { listening, portOf } from "../support/suites/requests/listen.js"

let last = 0

/** Returns the headers with which a client sends back the session that a response has set. */
const kept = ({ cookies }: Sent): Readonly<Record<string, string>> => {
  const cookie = cookies.find((one) => one.startsWith(`${name}=`))
  return cookie === undefined ? {} : { cookie: `other=1; ${cookie.split(";")[0]}; more=2` }
}

const write = (part: string, headers?: Readonly<Record<string, string>>) =>
  Effect.suspend(() => {
    const id = ++last
    return Effect.map(send(`${part}/write/${id}`, headers), (sent) => {
      assert.strictEqual(sent.status, 201)
      return { id, sent }
    })
  })

const read = (part: string, id: number, headers?: Readonly<Record<string, string>>) =>
  Effect.map(send(`${part}/read/${id}`, headers), ({ body, status }) => {
    assert.strictEqual(status, 200)
    return JSON.parse(body) as { readonly port: number; readonly there: boolean } // as the handler has written it
  })

layer(cluster, { excludeTestServices: true, timeout: "30 seconds" })("read your writes over HTTP", (shared) => {
  for (const [title, site] of Object.entries(sites)) {
    shared.layer(site, { timeout: "30 seconds" })(title, (it) => {
      it.scoped("a client reads its writes in its next request, from a replica that has them", () =>
        Effect.gen(function* () {
          const [one, other] = [yield* replica(0), yield* replica(1)]
          for (let i = 0; i < 10; i++) {
            const { id, sent } = yield* write("patient")
            const seen = yield* read("patient", id, kept(sent))
            assert.isTrue(seen.there)
            assert.include([one.port, other.port], seen.port)
          }
          yield* pause(one)
          for (let i = 0; i < 4; i++) {
            const { id, sent } = yield* write("patient")
            assert.deepStrictEqual(yield* read("patient", id, kept(sent)), { port: other.port, there: true })
          }
        })
      )

      it.scoped("a client reads from the primary if no replica has its writes in time, else from a replica", () =>
        Effect.gen(function* () {
          const { primary, replicas } = yield* Cluster
          yield* Effect.forEach(replicas, pause)
          const { id, sent } = yield* write("hasty")
          assert.deepStrictEqual(yield* read("hasty", id, kept(sent)), { port: primary.port, there: true })
          const stranger = yield* read("hasty", id)
          assert.isFalse(stranger.there)
          assert.notStrictEqual(stranger.port, primary.port)
        })
      )

      it.scoped("a client reads its writes over several requests, each of which sends what the last one returned", () =>
        Effect.gen(function* () {
          const { primary, replicas } = yield* Cluster
          const first = yield* write("hasty")
          yield* Effect.forEach(replicas, pause)
          const second = yield* write("hasty", kept(first.sent))
          const between = yield* send(`hasty/read/${first.id}`, kept(second.sent))
          // a request that only reads sets no session
          assert.deepStrictEqual(kept(between), {})
          for (const { id } of [first, second]) {
            assert.deepStrictEqual(yield* read("hasty", id, kept(second.sent)), { port: primary.port, there: true })
          }
        })
      )

      it.scoped("a response has the cookies of its handler beside that of the session", () =>
        Effect.gen(function* () {
          for (let i = 0; i < 2; i++) {
            const { cookies } = (yield* write("patient")).sent
            assert.deepStrictEqual(cookies.map((cookie) => cookie.split("=")[0]).sort(), [name, "own"])
            assert.match(
              cookies.find((cookie) => cookie.startsWith(name)) ?? "",
              /^effect-db=[\w.-]+; Path=\/; HttpOnly; SameSite=Lax$/
            )
          }
        })
      )

      it.scoped("a client reads the rows that a failed request has kept, and rows that are undone set no session", () =>
        Effect.gen(function* () {
          const { primary, replicas } = yield* Cluster
          yield* Effect.forEach(replicas, pause)
          const id = ++last
          const failed = yield* send(`hasty/keep/${id}`)
          assert.strictEqual(failed.status, 500)
          assert.deepStrictEqual(yield* read("hasty", id, kept(failed)), { port: primary.port, there: true })
          const refused = yield* send(`hasty/refuse/${++last}`)
          assert.strictEqual(refused.status, 409)
          assert.deepStrictEqual(kept(refused), {})
          const thrown = ++last
          const broken = yield* send(`hasty/throw/${thrown}`)
          assert.strictEqual(broken.status, 500)
          // with Hono, the answer to an error is made outside of the handler, and has the session, too
          assert.deepStrictEqual(yield* read("hasty", thrown, kept(broken)), { port: primary.port, there: true })
        })
      )

      it.scoped("a client may carry its session in a header in place of the cookie", () =>
        Effect.gen(function* () {
          yield* pause(yield* replica(0))
          const { port } = yield* replica(1)
          for (let i = 0; i < 4; i++) {
            const { id, sent } = yield* write("header")
            assert.deepStrictEqual(kept(sent), {})
            assert.deepStrictEqual(yield* read("header", id, { "x-seen": sent.header ?? "" }), { port, there: true })
          }
        })
      )

      it.scoped("a session without a valid signature is ignored, and no request is refused for it", () =>
        Effect.gen(function* () {
          yield* Effect.forEach((yield* Cluster).replicas, pause)
          const { id, sent } = yield* write("hasty")
          const value = /^other=1; effect-db=(.*); more=2$/.exec(kept(sent).cookie ?? "")?.[1] ?? ""
          const [text = "", signature = ""] = value.split(".")
          const lie = Buffer.from("app").toString("base64url")
          const first = signature.startsWith("A") ? "B" : "A"
          for (const forged of [
            `${lie}.${signature}`,
            `${text}.${first}${signature.slice(1)}`,
            text,
            `${text}.`,
            "",
            ".",
            "%",
            "x".repeat(10_000)
          ]) {
            const seen = yield* read("hasty", id, { cookie: `${name}=${forged}` })
            assert.isFalse(seen.there, forged)
          }
          assert.isTrue((yield* read("hasty", id, { cookie: `${name}=${value}` })).there)
        })
      )

      it.scoped("a secret may be replaced: the previous one is still accepted, and a foreign one is not", () =>
        Effect.gen(function* () {
          yield* Effect.forEach((yield* Cluster).replicas, pause)
          const { id, sent } = yield* write("before")
          assert.isFalse((yield* read("hasty", id, kept(sent))).there)
          // the read waits for a replica, so its session was accepted
          const waiting = yield* Effect.fork(read("patient", id, kept(sent)))
          for (let i = 0; i < 5; i++) assert.isFalse((yield* read("patient", id)).there)
          assert.isTrue(Option.isNone(yield* Fiber.poll(waiting)))
          yield* Effect.forEach((yield* Cluster).replicas, resume)
          assert.isTrue((yield* Fiber.join(waiting)).there)
        })
      )
    })
  }

  shared.scoped("a web response stays as it is beside the session: a redirection, a stream, an error", () =>
    Effect.gen(function* () {
      const runtime = yield* opened
      const answer = (make: () => Response) =>
        Effect.promise(() => {
          const handle = runtime.handler(
            async () => {
              await runtime.runPromise(act("write", ++last))
              return make()
            },
            { readYourWrites: { secret } }
          )
          return handle(new Request("http://localhost/", { method: "POST" }))
        })
      const redirection = yield* answer(() => Response.redirect("http://localhost/next", 303))
      assert.strictEqual(redirection.status, 303)
      assert.strictEqual(redirection.headers.get("location"), "http://localhost/next")
      assert.match(redirection.headers.getSetCookie().join(), /^effect-db=/)
      const streamed = yield* answer(() => new Response(new Blob(["a", "b"]).stream(), { statusText: "Fine" }))
      assert.match(streamed.headers.getSetCookie().join(), /^effect-db=/)
      assert.deepStrictEqual([yield* Effect.promise(() => streamed.text()), streamed.statusText], ["ab", "Fine"])
      const none = yield* answer(() => Response.error())
      assert.strictEqual(none.type, "error")
    })
  )

  shared.scoped("a header that a handler lists twice is sent twice, also with a session", () =>
    Effect.gen(function* () {
      const runtime = yield* opened
      const all = new Map([
        ["without", runtime.middleware()],
        ["cookie", runtime.middleware({ readYourWrites: { secret } })],
        ["header", runtime.middleware({ readYourWrites: { secret, header: "x-seen" } })]
      ])
      const server = createServer((request, response) => {
        const which = (request.url ?? "").slice(1)
        all.get(which)?.(request, response, async () => {
          await runtime.databases.db.writer`INSERT INTO item (id) VALUES (${++last})`
          response.writeHead(201, ["link", "</a>", "link", "</b>"]).end()
        })
      })
      const { port } = yield* Effect.acquireRelease(
        Effect.promise(() => listening(server.listen(0, "127.0.0.1"))),
        ({ close }) => Effect.promise(close)
      )
      yield* Effect.promise(async () => {
        const seen: Record<string, string | null> = {}
        for (const which of all.keys()) {
          seen[which] = (await fetch(`http://127.0.0.1:${port}/${which}`)).headers.get("link")
        }
        assert.deepStrictEqual(seen, { without: "</a>, </b>", cookie: "</a>, </b>", header: "</a>, </b>" })
      })
    })
  )

  shared.scoped("a response that is returned to several requests has a session after each write alone", () =>
    Effect.gen(function* () {
      const runtime = yield* opened
      const { db } = runtime.databases
      const done = new Response(null, { status: 204 })
      const handle = runtime.handler(
        async (request) => {
          if (request.method === "POST") await db.writer`INSERT INTO item (id) VALUES (${++last})`
          return done
        },
        { readYourWrites: { secret } }
      )
      const counts = yield* Effect.promise(async () => {
        const all: Array<number> = []
        for (const method of ["POST", "POST", "POST", "GET"]) {
          const response = await handle(new Request("http://localhost/", { method }))
          all.push(response.headers.getSetCookie().length)
        }
        return all
      })
      assert.deepStrictEqual(counts, [1, 1, 1, 0])
    })
  )

  shared.scoped("the session is kept over HTTP/2, and outside of a unit of work", () =>
    Effect.gen(function* () {
      const { primary, replicas } = yield* Cluster
      const runtime = yield* opened
      const keeps = runtime.middleware({ readYourWrites: { secret, maxWait: 0 }, transaction: () => "none" })
      const server = http2.createServer((request, response) =>
        keeps(request, response, (error) => {
          assert.isUndefined(error)
          const [, what = "", id] = request.url.split("/")
          void runtime.runPromise(act(what, Number(id))).then(({ body, status }) => {
            response.writeHead(status, { "set-cookie": [own, "more=1"] })
            response.end(body)
          })
        })
      )
      const { port } = yield* Effect.acquireRelease(
        Effect.promise(async () => {
          server.listen(0, "127.0.0.1")
          await once(server, "listening")
          return { port: portOf(server) }
        }),
        () => Effect.sync(() => server.close())
      )
      const client = yield* Effect.acquireRelease(
        Effect.sync(() => http2.connect(`http://127.0.0.1:${port}`)),
        (session) => Effect.sync(() => session.destroy())
      )
      const ask = (path: string, cookie: string) =>
        Effect.promise(async () => {
          const stream = client.request({ ":method": "POST", ":path": path, cookie })
          stream.end()
          const [headers] = await once(stream, "response")
          let body = ""
          for await (const part of stream) body += String(part)
          return { cookies: headers["set-cookie"], body }
        })
      yield* Effect.forEach(replicas, pause)
      const written = yield* ask(`/write/${++last}`, "")
      assert.deepStrictEqual(
        written.cookies.map((cookie: string) => cookie.split("=")[0]),
        ["own", "more", name]
      )
      const { body } = yield* ask(
        `/read/${last}`,
        written.cookies.map((cookie: string) => cookie.split(";")[0]).join("; ")
      )
      assert.deepStrictEqual(JSON.parse(body), { port: primary.port, there: true })
    })
  )

  shared.scoped("the session is sent also if the transaction was begun before readYourWrites", () =>
    Effect.gen(function* () {
      const routes = HttpRouter.empty.pipe(
        HttpRouter.post(
          "/",
          Effect.as(
            Effect.suspend(() => act("write", ++last)),
            HttpServerResponse.empty({ status: 201 })
          )
        ),
        HttpRouter.use(RequestTransaction.readYourWrites({ secret })),
        // begins the transaction, for example to read the user
        HttpRouter.use((app) =>
          Effect.zipRight(
            Effect.flatMap(Db.writer, (sql) => sql`SELECT 1`),
            app
          )
        ),
        HttpRouter.use(within)
      )
      const site = yield* Layer.build(siteOf(Layer.provideMerge(HttpServer.serve(routes), listener)))
      const sent = yield* Effect.provide(send(""), site)
      assert.strictEqual(sent.status, 201)
      assert.match(sent.cookies.join(), /^effect-db=/)
    })
  )

  shared.scoped("a request that only reads gets no session, though it reads from the primary", () =>
    Effect.gen(function* () {
      const runtime = yield* opened
      const handle = runtime.handler(
        async () => Response.json(await runtime.databases.db.writer`SELECT count(*) FROM item`),
        { readYourWrites: { secret } }
      )
      const response = yield* Effect.promise(() => handle(new Request("http://localhost/")))
      assert.deepStrictEqual([response.status, response.headers.getSetCookie()], [200, []])
    })
  )

  for (const [title, both] of [
    ["two nested middlewares with readYourWrites set one session", true],
    ["an inner middleware with readYourWrites sets one session", false]
  ] as const) {
    shared.scoped(title, () =>
      Effect.gen(function* () {
        const runtime = yield* opened
        const app = express()
        app.use(runtime.middleware(both ? { readYourWrites: { secret } } : {}))
        app.post("/", runtime.middleware({ readYourWrites: { secret } }), async (_, response) => {
          await runtime.runPromise(act("write", ++last))
          response.cookie("own", "cookie").status(201).end()
        })
        const { port } = yield* Effect.acquireRelease(
          Effect.promise(() => listening(app.listen(0, "127.0.0.1"))),
          ({ close }) => Effect.promise(close)
        )
        const sent = yield* Effect.provideService(send(""), Site, { port })
        assert.strictEqual(sent.status, 201)
        assert.deepStrictEqual(sent.cookies.map((cookie) => cookie.split("=")[0]).sort(), [name, "own"])
      })
    )
  }

  shared.scoped("a handler of web requests inside of another one sets the session once", () =>
    Effect.gen(function* () {
      const runtime = yield* opened
      const options = { readYourWrites: { secret } }
      const inner = runtime.handler(async () => {
        await runtime.runPromise(act("write", ++last))
        return new Response(null, { status: 201 })
      }, options)
      const outer = runtime.handler((request) => inner(request), options)
      const response = yield* Effect.promise(() => outer(new Request("http://localhost/", { method: "POST" })))
      assert.strictEqual(response.status, 201)
      assert.lengthOf(response.headers.getSetCookie(), 1)
    })
  )

  shared.scoped("the statement of a client that disconnects goes on outside of a unit of work", () =>
    Effect.gen(function* () {
      const { primary } = yield* Cluster
      const runtime = yield* opened
      const { writer } = runtime.databases.db
      const use = runtime.middleware({ readYourWrites: { secret }, transaction: () => "none" })
      const id = ++last
      const done = yield* Deferred.make<unknown>()
      const gone = yield* Deferred.make<void>()
      const server = createServer((request, response) => {
        response.once("close", () => Deferred.unsafeDone(gone, Exit.void))
        use(request, response, () => {
          const work = Promise.resolve(writer`INSERT INTO item SELECT ${id} FROM pg_advisory_lock_shared(${id})`)
          work.then(
            () => Deferred.unsafeDone(done, Exit.succeed("done")),
            (error) => Deferred.unsafeDone(done, Exit.succeed(error))
          )
        })
      })
      const { port } = yield* Effect.acquireRelease(
        Effect.promise(() => listening(server.listen(0, "127.0.0.1"))),
        ({ close }) => Effect.promise(close)
      )
      const holder = new Pg.Client(Redacted.value(primary.url("app")))
      yield* Effect.acquireRelease(
        Effect.promise(() => holder.connect()),
        () => Effect.promise(() => holder.end())
      )
      yield* Effect.promise(() => holder.query("SELECT pg_advisory_lock($1)", [id]))
      const asking = yield* Effect.fork(Effect.provideService(send(""), Site, { port }))
      yield* query(
        primary.url("app"),
        "SELECT 1 FROM pg_locks WHERE locktype = 'advisory' AND objid = $1 AND NOT granted",
        [id]
      ).pipe(eventually((rows) => rows.length === 1))
      yield* Fiber.interrupt(asking)
      yield* Deferred.await(gone)
      yield* Effect.promise(() => holder.query("SELECT pg_advisory_unlock($1)", [id]))
      assert.strictEqual(yield* Deferred.await(done), "done")
    })
  )

  shared.scoped("promise code may have a causal session", () =>
    Effect.gen(function* () {
      const { primary, replicas } = yield* Cluster
      const { databases, ...runtime } = yield* opened
      yield* Effect.forEach(replicas, pause)
      const seen = yield* Effect.promise(() =>
        runtime.withSession(
          async () => {
            const { reader, writer } = databases.db
            await runtime.unitOfWork(async () => void (await writer`INSERT INTO item (id) VALUES (${++last})`))
            return reader`
            SELECT inet_server_port() AS port, EXISTS (SELECT 1 FROM item WHERE id = ${last}) AS there`
          },
          Consistency.makeSession({ maxWait: 0 })
        )
      )
      assert.deepStrictEqual(seen, [{ port: primary.port, there: true }])
      // work outside of the unit belongs to the session as well
      const later = yield* Effect.promise(() =>
        runtime.withSession(
          async () => {
            await runtime.unitOfWork(() => runtime.runPromise(act("write", ++last)))
            return runtime.unitOfWork(() => runtime.outside(() => runtime.runPromise(act("read", last))))
          },
          Consistency.makeSession({ maxWait: 0 })
        )
      )
      assert.deepStrictEqual(JSON.parse(later.body), { port: primary.port, there: true })
    })
  )

  for (const secret of [undefined, "a text that is not redacted, but long enough", [], [undefined]]) {
    shared.effect(`a secret of a wrong type is refused: ${JSON.stringify(secret)}`, () =>
      Effect.gen(function* () {
        // as a program without types may pass them
        const options = { secret } as unknown as RequestTransaction.ReadYourWrites
        const error = yield* Effect.flip(
          Effect.try({ try: () => RequestTransaction.readYourWrites(options), catch: (error) => error })
        )
        assert.isTrue(error instanceof DatabaseError.ConfigInvalid)
        assert.notInclude(String(error), "not redacted, but")
      })
    )
  }

  for (const [setting, options] of [
    ["secret", { secret: Redacted.make("") }],
    ["secret", { secret: Redacted.make("0123456789012345678901234567890") }],
    ["secret", { secret: [secret, Redacted.make("short")] }],
    ["cookie", { secret, cookie: "" }],
    ["cookie", { secret, cookie: "a=b" }],
    ["cookie", { secret, cookie: "a; Domain=evil" }],
    ["header", { secret, header: "x seen" }],
    ["header", { secret, header: "Content-Length" }],
    ["header", { secret, header: "set-cookie" }],
    ["header", { secret, header: "x\r\ny: z" }]
  ] as const) {
    shared.effect(`an invalid option is refused: ${JSON.stringify(options)}`, () =>
      Effect.gen(function* () {
        const error = yield* Effect.flip(
          Effect.try({ try: () => RequestTransaction.readYourWrites(options), catch: (error) => error })
        )
        assert.isTrue(error instanceof DatabaseError.ConfigInvalid)
        assert.include(String(error), `setting "readYourWrites.${setting}" is `)
        assert.notInclude(String(error), Redacted.value(secret))
        assert.notInclude(String(error), "short")
      })
    )
  }
})
