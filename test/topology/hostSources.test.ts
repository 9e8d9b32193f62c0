/** The ready sources of hosts: a list, DNS and Patroni's API. */
import * as Http from "node:http"
import * as FetchHttpClient from "@effect/platform/FetchHttpClient"
import * as HttpClient from "@effect/platform/HttpClient"
import * as HttpClientRequest from "@effect/platform/HttpClientRequest"
import * as NodeHttpClient from "@effect/platform-node/NodeHttpClient"
import { assert, describe, it } from "@effect/vitest"
import * as Effect from "effect/Effect"
import { Discovery } from "effect-db"
import { makeDnsServer } from "../support/dnsServer.js"
import { closedPort, listenOnPort } from "../support/tcp.js"

/** Returns the reason and the detail of a failure. */
const failureOf = <R>(source: Effect.Effect<unknown, Discovery.DiscoveryError, R>) =>
  Effect.map(Effect.flip(source), ({ detail, reason }) => [reason, detail] as const)

describe("Discovery.list", () => {
  it.effect("a list returns its hosts", () =>
    Effect.gen(function* () {
      assert.deepStrictEqual(yield* Discovery.list([{ host: "a" }]), [{ host: "a" }])
    })
  )
})

describe("Discovery.dns", () => {
  it.scopedLive("a name leads to the addresses of both families, which each run resolves again", () =>
    Effect.gen(function* () {
      const server = yield* makeDnsServer
      const found = Discovery.dns("db.test", { port: 5433, servers: [server.address] })
      server.records.set("db.test", [
        { type: "A", address: "10.0.0.2" },
        { type: "A", address: "10.0.0.1" },
        { type: "AAAA", address: "fd00:0:0:0:0:0:0:1" }
      ])
      assert.deepStrictEqual(yield* found, [
        { name: "10.0.0.1:5433", host: "db.test", address: "10.0.0.1", port: 5433 },
        { name: "10.0.0.2:5433", host: "db.test", address: "10.0.0.2", port: 5433 },
        { name: "[fd00::1]:5433", host: "db.test", address: "fd00::1", port: 5433 }
      ])
      server.records.set("db.test", [{ type: "A", address: "10.0.0.3" }])
      assert.deepStrictEqual(
        (yield* found).map(({ address }) => address),
        ["10.0.0.3"]
      )
    })
  )

  it.scopedLive("a missing name, a silent server and a wrong address of a server are typed failures", () =>
    Effect.gen(function* () {
      const server = yield* makeDnsServer
      const ask = (name: string, servers = [server.address]) =>
        Effect.map(failureOf(Discovery.dns(name, { servers, timeout: "200 millis" })), ([reason]) => reason)
      assert.strictEqual(yield* ask("missing.test"), "noHosts")
      server.records.set("empty.test", [])
      assert.strictEqual(yield* ask("empty.test"), "noHosts")
      assert.strictEqual(yield* ask("a", ["nonsense"]), "unreachable")
      server.isSilent = true
      assert.strictEqual(yield* ask("db.test"), "timeout")
    })
  )

  it.live("without servers the resolver of the system is asked", () =>
    Effect.gen(function* () {
      const hosts = yield* Discovery.dns("localhost")
      assert.include(
        hosts.map(({ name }) => name),
        "127.0.0.1:5432"
      )
    })
  )
})

describe("Discovery.srv", () => {
  const name = "_postgresql._tcp.test"

  it.scopedLive("SRV records become hosts and ports, in the order of their priorities", () =>
    Effect.gen(function* () {
      const server = yield* makeDnsServer
      server.records.set(name, [
        { type: "SRV", target: "c.test", port: 5434, priority: 20, weight: 0 },
        { type: "SRV", target: "b.test", port: 5433, priority: 10, weight: 1 },
        { type: "SRV", target: "a.test", port: 5432, priority: 10, weight: 9 },
        { type: "SRV", target: "a.test", port: 5432, priority: 30, weight: 9 }
      ])
      assert.deepStrictEqual(yield* Discovery.srv(name, { servers: [server.address] }), [
        { host: "a.test", port: 5432 },
        { host: "b.test", port: 5433 },
        { host: "c.test", port: 5434 }
      ])
    })
  )

  it.scopedLive("an SRV record without a host name, or of a service that is not offered, is a typed failure", () =>
    Effect.gen(function* () {
      const server = yield* makeDnsServer
      const ask = (target: string, port = 5432) => {
        server.records.set(name, [{ type: "SRV", target, port, priority: 0, weight: 0 }])
        return Effect.map(failureOf(Discovery.srv(name, { servers: [server.address] })), ([reason]) => reason)
      }
      // the folder of a Unix socket, and a parameter
      for (const target of ["/tmp", "a b", "a@b", "-a"]) assert.strictEqual(yield* ask(target), "invalidAnswer", target)
      assert.strictEqual(yield* ask("a", 0), "invalidAnswer")
      assert.strictEqual(yield* ask(""), "noHosts")
      const other = Discovery.srv("missing.test", { servers: [server.address] })
      assert.strictEqual((yield* failureOf(other))[0], "noHosts")
    })
  )
})

/** Starts an HTTP server that answers each request, and returns its URL. */
const serve = (answer: (request: Http.IncomingMessage, response: Http.ServerResponse) => void) =>
  Effect.map(
    Effect.acquireRelease(
      Effect.async<Http.Server>((resume) => {
        const server = Http.createServer(answer).listen(0, "127.0.0.1", () => resume(Effect.succeed(server)))
      }),
      (server) =>
        Effect.async<void>((resume) => {
          server.close(() => resume(Effect.void))
          server.closeAllConnections()
        })
    ),
    (server) => {
      const address = server.address()
      return `http://127.0.0.1:${typeof address === "object" && address !== null ? address.port : 0}`
    }
  )

const answering = (body: string, status = 200) =>
  serve((_, response) => response.writeHead(status, { location: "/other" }).end(body))

const member = (host: unknown, state = "running", port: unknown = 5432) => ({
  ...{ name: "a", role: "replica", state, api_url: "http://a:8008/patroni", host, port, timeline: 1, lag: 0 }
})

const cluster = (...members: ReadonlyArray<unknown>) => JSON.stringify({ members, scope: "app" })

describe("Discovery.patroni", () => {
  for (const [client, layer] of [
    ["fetch", FetchHttpClient.layer],
    ["Node's client", NodeHttpClient.layer]
  ] as const) {
    describe(`by ${client}`, () => {
      it.scopedLive("the running members of the first URL that answers are the hosts", () =>
        Effect.gen(function* () {
          const paths: Array<string | undefined> = []
          const url = yield* serve(({ headers, url }, response) => {
            paths.push(`${url} ${headers.authorization}`)
            response.end(
              cluster(
                { ...member("10.0.0.1"), role: "leader" },
                member("b.test", "streaming", 5433),
                member("b.test", "streaming", 5433),
                member("10.0.0.3", "stopped", "none"),
                member("c.test", "in archive recovery"),
                { ...member("d.test"), tags: { noloadbalance: true } },
                { name: "d", role: "replica", state: "creating replica" },
                { ...member("::1"), port: undefined }
              )
            )
          })
          const dead = `http://127.0.0.1:${yield* closedPort}`
          const silent = `http://127.0.0.1:${yield* listenOnPort()}`
          const authorized = Effect.updateService(
            Discovery.patroni([dead, silent, `${url}/patroni`], { timeout: "20 seconds" }),
            HttpClient.HttpClient,
            HttpClient.mapRequest(HttpClientRequest.basicAuth("me", "pw"))
          )
          assert.deepStrictEqual(yield* authorized, [
            { host: "10.0.0.1", port: 5432 },
            { host: "b.test", port: 5433 },
            { host: "c.test", port: 5432 },
            { host: "::1", port: undefined }
          ])
          assert.deepStrictEqual(paths, [`/patroni/cluster Basic ${btoa("me:pw")}`])
        }).pipe(Effect.provide(layer))
      )

      it.scopedLive("an answer that is not Patroni's is a typed failure", () =>
        Effect.gen(function* () {
          const many = Array.from({ length: 20_000 }, () => member("10.0.0.1"))
          const answers: ReadonlyArray<readonly [reason: string, body: string, status?: number]> = [
            ["invalidAnswer", "<html>Sign in</html>"],
            ["invalidAnswer", ""],
            ["invalidAnswer", "null"],
            ["invalidAnswer", "{}"],
            ["invalidAnswer", cluster("a")],
            ["invalidAnswer", cluster(member(7))],
            ["invalidAnswer", cluster(member("/tmp"))],
            ["invalidAnswer", cluster(member("a b"))],
            ["invalidAnswer", cluster(member("a", "running", 70_000))],
            ["invalidAnswer", cluster(member("a", "running", "5432"))],
            ["invalidAnswer", cluster(...many)],
            ["invalidAnswer", cluster(member("a")), 302],
            ["invalidAnswer", cluster(member("a")), 503],
            ["noHosts", cluster()],
            ["noHosts", cluster(member("a", "stopped"))]
          ]
          for (const [reason, body, status] of answers) {
            const found = Discovery.patroni([yield* answering(body, status)])
            assert.strictEqual((yield* failureOf(found))[0], reason, `${status} ${body.slice(0, 100)}`)
          }
        }).pipe(Effect.provide(layer))
      )

      it.scopedLive("an endless answer, a silent server and a closed port are typed failures", () =>
        Effect.gen(function* () {
          const endless = yield* serve((_, response) => {
            const part = Buffer.alloc(65_536, " ")
            const more = () => {
              while (!response.destroyed && response.write(part));
            }
            response.on("drain", more)
            more()
          })
          const ask = (url: string) =>
            Effect.map(failureOf(Discovery.patroni([url], { timeout: "500 millis" })), ([reason]) => reason)
          assert.strictEqual(yield* ask(endless), "invalidAnswer")
          assert.strictEqual(yield* ask(`http://127.0.0.1:${yield* listenOnPort()}`), "timeout")
          assert.strictEqual(yield* ask(`http://127.0.0.1:${yield* closedPort}`), "unreachable")
        }).pipe(Effect.provide(layer))
      )
    })
  }

  it.effect("a text that is no URL, and a URL with a password, are typed failures that do not show them", () =>
    Effect.gen(function* () {
      for (const url of ["nonsense", "http://me:s3cret@127.0.0.1:8008"]) {
        const error = yield* Effect.flip(Discovery.patroni([url]))
        assert.strictEqual(error.reason, "invalidAnswer")
        assert.notInclude(error.message, "s3cret")
      }
    }).pipe(Effect.provide(FetchHttpClient.layer))
  )
})
