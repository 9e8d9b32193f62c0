import { Effect, Option, Schema } from "effect"
import type { Topology } from "effect-db"
import { Cluster } from "./cluster.js"
import { Db } from "./databases.js"

const Figure = Schema.NullOr(Schema.Number)

export const Member = Schema.Struct({
  name: Schema.String,
  address: Schema.String,
  role: Schema.Literal("primary", "replica", "none"),
  state: Schema.Literal("up", "behind", "suspect", "down", "trial", "unknown", "stopped"),
  reason: Schema.NullOr(Schema.String).annotations({ description: "The reason why the server is not used" }),
  lagMillis: Figure,
  lagBytes: Figure,
  latencyMillis: Figure,
  timeline: Figure
}).annotations({ identifier: "Member" })

type Row = typeof Member.Type

/** Returns a number that JSON has; a replica without a stream has an infinite lag. */
const figure = (value: number | undefined): number | null =>
  value === undefined || !Number.isFinite(value) ? null : value

const figuresOf = (status: Topology.ServerStatus | undefined) => ({
  lagMillis: figure(status?.lagMillis),
  lagBytes: figure(status?.lagBytes),
  latencyMillis: figure(status?.latencyMillis),
  timeline: figure(status?.timeline)
})

const isWriter = (writer: Topology.ServerStatus, address: string): boolean =>
  writer.hosts.length === 0
    ? writer.name === address
    : writer.hosts.some((host) => host.name === address && host.isWriter)

const row = (
  { address, isRunning, name }: { readonly address: string; readonly isRunning: boolean; readonly name: string },
  servers: ReadonlyArray<Topology.ServerStatus>
): Row => {
  const writer = servers.find(({ role }) => role === "writer")
  const reader = servers.find((server) => server.role === "reader" && server.name === address)
  const base = { name, address }
  if (!isRunning) {
    return { ...base, role: "none", state: "stopped", reason: "its processes have ended", ...figuresOf(undefined) }
  }
  if (writer !== undefined && isWriter(writer, address)) {
    const latencyMillis = figure(writer.latencyMillis ?? reader?.latencyMillis)
    const { lagBytes, lagMillis, timeline } = figuresOf(writer)
    const own = { state: writer.state, reason: writer.reason ?? null, lagBytes, lagMillis, latencyMillis, timeline }
    return { ...base, role: "primary", ...own }
  }
  const state = reader === undefined ? "unknown" : reader.state === "up" && !reader.up ? "behind" : reader.state
  const reason = reader === undefined ? "it serves no reads" : (reader.reason ?? null)
  return { ...base, role: "replica", state, reason, ...figuresOf(reader) }
}

/** Returns the servers of the first database, as the library sees them; those that were started here also while they are dead. */
export const all = Effect.gen(function* () {
  const { servers } = yield* Db.status
  const cluster = yield* Cluster
  if (Option.isSome(cluster)) {
    return yield* Effect.forEach(cluster.value.members, ({ address, name, server }) =>
      Effect.map(server.isRunning, (isRunning) => row({ address, isRunning, name }, servers))
    )
  }
  const addresses = servers.flatMap(({ hosts, name }) => (hosts.length === 0 ? [name] : hosts.map((host) => host.name)))
  return [...new Set(addresses)].map((address) => row({ address, isRunning: true, name: address }, servers))
})
