/**
 * Two servers under Patroni, with etcd, each on ports of its own in a fresh folder; and HAProxy in
 * front of them. `npm run test:cluster` provides the programs, and without them the suites that need
 * them are skipped.
 */
import { spawnSync } from "node:child_process"
import { randomBytes } from "node:crypto"
import * as fs from "node:fs"
import * as path from "node:path"
import * as Effect from "effect/Effect"
import * as Redacted from "effect/Redacted"
import type * as Scope from "effect/Scope"
import { launch, signal } from "../../src/internal/embedded/childProcess.js"
import { freePort } from "../../src/internal/embedded/freePort.js"
import { unprivilegedUser } from "../../src/internal/embedded/osUser.js"
import { emptyFolder } from "./directory.js"
import { eventually, until } from "./eventually.js"
import { query } from "./server.js"

const {
  EFFECT_DB_TEST_ETCD: etcd,
  EFFECT_DB_TEST_HAPROXY: haproxy,
  EFFECT_DB_TEST_PATRONI: patroni,
  EFFECT_DB_TEST_POSTGRES_BIN: bin
} = process.env

/** True if Patroni, etcd, HAProxy and PostgreSQL are available. */
export const hasPatroni = ![etcd, haproxy, patroni, bin].includes(undefined)

/** Server under Patroni. */
export interface Node {
  readonly name: string
  readonly host: string
  readonly port: number
  /** The URL of the REST API of its Patroni. */
  readonly api: string
  readonly url: Redacted.Redacted<string>
  /** Kills Patroni and the server at once. */
  readonly kill: Effect.Effect<void>
  readonly start: Effect.Effect<void>
}

/** Returns the processes whose working directory is in a folder. */
const processesIn = (folder: string): ReadonlyArray<number> =>
  fs.readdirSync("/proc").flatMap((name) => {
    if (!/^\d+$/.test(name)) return []
    try {
      return fs.readlinkSync(`/proc/${name}/cwd`).startsWith(folder) ? [Number(name)] : []
    } catch {
      // it has ended, or belongs to another user
      return []
    }
  })

/** Removes the shared memory of the servers in a folder, which killed servers leave, named in their pid files. */
const removeSegments = (folder: string): void => {
  for (const name of fs.readdirSync(folder, { recursive: true, encoding: "utf8" })) {
    if (path.basename(name) !== "postmaster.pid") continue
    const [, segment] = /^ *\d+ +(\d+)$/m.exec(fs.readFileSync(path.join(folder, name), "utf8")) ?? []
    // the server may have recycled it already
    if (segment !== undefined) spawnSync("ipcrm", ["-m", segment])
  }
}

/** Kills all processes whose working directory is in a folder, also those that they start meanwhile. */
const killIn = (folder: string): Effect.Effect<void> =>
  Effect.tap(
    until(() => {
      const left = processesIn(folder)
      for (const pid of left) signal(pid, "SIGKILL")
      return left.length === 0
    }),
    () => removeSegments(folder)
  )

/** Member in the answer of Patroni's API. */
interface Member {
  readonly name: string
  readonly role: string
  readonly state: string
}

/** Returns the members as a node sees them, or none if it does not answer. */
const membersOf = ({ api }: Node): Effect.Effect<ReadonlyArray<Member>> =>
  Effect.tryPromise(async (signal) => {
    const response = await fetch(`${api}/cluster`, { signal })
    const { members } = (await response.json()) as { readonly members: ReadonlyArray<Member> }
    return members
  }).pipe(
    Effect.timeout("2 seconds"),
    Effect.orElseSucceed(() => [])
  )

/** Starts a cluster of two nodes. All processes are killed, and all files removed, when the scope ends. */
export const makePatroni = Effect.gen(function* () {
  const user = yield* unprivilegedUser
  const folder = yield* Effect.acquireRelease(emptyFolder, killIn)
  const own = (at: string) => {
    if (user !== undefined) fs.chownSync(at, user.uid, user.gid)
    return at
  }
  const makeFolder = (name: string) => {
    const at = path.join(folder, name)
    fs.mkdirSync(at, { mode: 0o700 })
    return own(at)
  }
  const write = (at: string, text: string) => {
    fs.writeFileSync(at, text, { mode: 0o600 })
    return own(at)
  }
  const run = (program: string | undefined, args: ReadonlyArray<string>, cwd: string) =>
    launch(program ?? "", args, { cwd, user, stdio: ["ignore", "ignore", "ignore"] }, () => {})
  own(folder)
  const [client, peer] = [yield* freePort, yield* freePort]
  const etcdFolder = makeFolder("etcd")
  const [clientUrl, peerUrl] = [`http://127.0.0.1:${client}`, `http://127.0.0.1:${peer}`]
  yield* run(
    etcd,
    [
      ...["--name", "etcd", "--data-dir", path.join(etcdFolder, "data")],
      ...["--listen-client-urls", clientUrl, "--advertise-client-urls", clientUrl],
      ...["--listen-peer-urls", peerUrl, "--initial-advertise-peer-urls", peerUrl],
      ...["--initial-cluster", `etcd=${peerUrl}`, "--heartbeat-interval", "50", "--election-timeout", "500"],
      ...["--logger", "zap", "--log-outputs", path.join(etcdFolder, "log")]
    ],
    etcdFolder
  )
  const password = randomBytes(12).toString("hex")
  const makeNode = (name: string) =>
    Effect.gen(function* () {
      const [port, rest] = [yield* freePort, yield* freePort]
      const home = makeFolder(name)
      const address = `127.0.0.1:${port}`
      const config = write(
        path.join(home, "patroni.json"),
        JSON.stringify({
          scope: "app",
          name,
          log: { dir: home },
          restapi: { listen: `127.0.0.1:${rest}`, connect_address: `127.0.0.1:${rest}` },
          etcd3: { host: `127.0.0.1:${client}` },
          bootstrap: {
            dcs: {
              // the shortest times that work: with a retry_timeout of 1 Patroni 3.0 acquires no lock
              ...{ ttl: 5, loop_wait: 1, retry_timeout: 2 },
              // a commit is acknowledged when the standby has it, so a failover loses none
              synchronous_mode: true,
              postgresql: { use_pg_rewind: true, use_slots: true }
            },
            initdb: [{ encoding: "UTF8" }, { locale: "C" }, "no-sync", "data-checksums"]
          },
          postgresql: {
            listen: address,
            connect_address: address,
            data_dir: path.join(home, "data"),
            bin_dir: bin,
            pgpass: path.join(home, "pgpass"),
            authentication: {
              superuser: { username: "postgres", password },
              replication: { username: "replicator", password }
            },
            parameters: {
              ...{ unix_socket_directories: "", dynamic_shared_memory_type: "mmap", fsync: "off" },
              wal_retrieve_retry_interval: "100ms"
            },
            pg_hba: [
              "host all all 127.0.0.1/32 scram-sha-256",
              "host replication replicator 127.0.0.1/32 scram-sha-256"
            ]
          }
        })
      )
      const start = Effect.orDie(run(patroni, [config], home))
      yield* start
      const node: Node = {
        ...{ name, host: "127.0.0.1", port, api: `http://127.0.0.1:${rest}` },
        url: Redacted.make(`postgres://postgres:${password}@${address}/postgres`),
        kill: killIn(home),
        start
      }
      return node
    })
  const nodes = [yield* makeNode("a"), yield* makeNode("b")] as const
  const members = Effect.map(Effect.forEach(nodes, membersOf, { concurrency: 2 }), (answers) => answers[0])
  /** Waits until one node leads and the other one is its synchronous standby; returns them in this order. */
  const settled = eventually(
    Effect.map(members, (all = []) => {
      const leader = nodes.find(({ name }) => all.some((member) => member.name === name && member.role === "leader"))
      const standby = nodes.find(({ name }) =>
        all.some((member) => member.name === name && member.role === "sync_standby" && member.state !== "stopped")
      )
      return leader === undefined || standby === undefined ? undefined : ([leader, standby] as const)
    }),
    (roles) => roles !== undefined
  ).pipe(Effect.map((roles) => roles ?? nodes))
  return { nodes, folder, settled, password, makeFolder, write, run }
})

/**
 * Starts HAProxy in front of the nodes, with health checks on Patroni's API; returns the ports that
 * lead to the leader and to the standbys.
 */
export const makeHaproxy = ({
  makeFolder,
  nodes,
  run,
  write
}: Effect.Effect.Success<typeof makePatroni>): Effect.Effect<
  { readonly primary: number; readonly replica: number },
  unknown,
  Scope.Scope
> =>
  Effect.gen(function* () {
    const ports = { primary: yield* freePort, replica: yield* freePort }
    const folder = makeFolder("haproxy")
    const listen = (role: keyof typeof ports) => [
      `listen ${role}`,
      `  bind 127.0.0.1:${ports[role]}`,
      `  option httpchk OPTIONS /${role}`,
      "  http-check expect status 200",
      "  default-server inter 200ms fastinter 100ms fall 2 rise 1 on-marked-down shutdown-sessions",
      ...nodes.map(({ api, host, name, port }) => `  server ${name} ${host}:${port} check port ${new URL(api).port}`)
    ]
    const config = write(
      path.join(folder, "haproxy.cfg"),
      [
        "global",
        "  maxconn 200",
        "defaults",
        "  mode tcp",
        "  timeout connect 1s",
        "  timeout client 10m",
        "  timeout server 10m",
        "  timeout check 1s",
        ...listen("primary"),
        ...listen("replica"),
        ""
      ].join("\n")
    )
    yield* run(haproxy, ["-f", config, "-db"], folder)
    return ports
  })

/** Checks if a node accepts writes, within a short time. */
export const acceptsWrites = ({ url }: Node): Effect.Effect<boolean> =>
  query(url, "INSERT INTO probe DEFAULT VALUES").pipe(
    Effect.as(true),
    Effect.catchAllCause(() => Effect.succeed(false)),
    Effect.timeoutTo({ duration: "500 millis", onSuccess: (it) => it, onTimeout: () => false })
  )
