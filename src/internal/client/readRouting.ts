/**
 * Read routing: the choice of the server for a read, by the consistency in force and the `Router`.
 */

import * as Context from "effect/Context"
import { toMillis } from "effect/Duration"
import type * as Fiber from "effect/Fiber"
import * as Predicate from "effect/Predicate"
import { type Consistency, CurrentConsistency, type Session, waitOf } from "../../Consistency.js"
import type { WhenAllBehind } from "../../DatabaseConfig.js"
import type { Candidate, Choose } from "../../Router.js"
import * as clock from "../concurrency/clock.js"
import { BoundedLagSelection } from "../topology/boundedLagSelection.js"
import type { ConnectionSource } from "../topology/connectionSource.js"
import { type ReadRequirement, ReplicaSelection } from "../topology/replicaSelection.js"
import type { Server } from "../topology/server.js"
import type { Topology } from "../topology/topology.js"
import type { ReadAffinity, TransactionContext } from "../transaction/context.js"
import { causalSessionOf } from "../transaction/currentCausalSession.js"

/** The requirement of a read that no replica may serve now, because all are too far behind. */
const noReplica: ReadRequirement = {
  tokens: undefined,
  maxWait: 0,
  otherwise: "fail",
  session: undefined,
  isOverMaxLag: true
}

/** Checks if a token has a position, without which only the primary is certain to have the writes. */
const hasPosition = (token: unknown): boolean => Predicate.hasProperty(token, "lsn") && typeof token.lsn === "bigint"

/** Returns the rank of a server: those that are slow to answer, or have no free connection, come last. */
const rankOf = ({ isBusy, isSuspect }: Server): number => (isSuspect ? 2 : isBusy ? 1 : 0)

/** Returns the servers with the best rank among those that meet a condition. */
const preferred = (servers: ReadonlyArray<Server>, condition: (server: Server) => boolean): ReadonlyArray<Server> => {
  let best = Number.POSITIVE_INFINITY
  let found: Array<Server> = []
  for (const server of servers) {
    if (!condition(server)) continue
    const rank = rankOf(server)
    if (rank > best) continue
    if (rank < best) found = []
    best = rank
    found.push(server)
  }
  return found
}

const leastBehind = (servers: ReadonlyArray<Server>): ReadonlyArray<Server> => {
  const lagOf = ({ lag }: Server) => lag?.millis ?? Number.POSITIVE_INFINITY
  const least = Math.min(...servers.map(lagOf))
  return servers.filter((server) => lagOf(server) === least)
}

const candidateOf = ({ lag, latency, name, reads, server }: Server): Candidate => ({
  name,
  load: reads.load,
  weight: server.weight,
  lagMillis: lag?.millis,
  lagBytes: lag?.bytes,
  latencyMillis: latency
})

/** Chooser of the servers for the reads of one database. */
export class ReadRouting {
  private turn = 0

  constructor(
    private readonly database: string,
    private readonly topology: Topology,
    private readonly choose: Choose,
    private readonly whenAllBehind: WhenAllBehind
  ) {}

  /** Returns the consistency in force for a fiber, or `undefined` for the default. */
  consistency(fiber: Fiber.RuntimeFiber<unknown, unknown>): Consistency | undefined {
    return Context.get(fiber.currentContext, CurrentConsistency).get(this.database)
  }

  /**
   * Returns a function that chooses the server of a read. Each further call, for another attempt,
   * chooses a replica that was not chosen before. If none is left, the function chooses the
   * primary, read-only, and starts again with all replicas.
   */
  picker(
    fiber: Fiber.RuntimeFiber<unknown, unknown>,
    ambient: TransactionContext | undefined,
    affinity: ReadAffinity | undefined
  ): () => ConnectionSource {
    const { topology } = this
    const { sampler, writer } = topology
    if (!topology.mayHaveReaders) return () => writer.reads
    topology.startMonitors()
    const consistency = this.consistency(fiber)
    const session = causalSessionOf(fiber.currentContext, ambient)
    const tried = new Set<Server>()
    const next = () => {
      const now = clock.now()
      // the readers of a cluster may change between two attempts
      const { readers } = topology
      const mayServe = (server: Server) => server.isUsable(now) && !tried.has(server)
      const isKept = (server: Server) => server.name === affinity?.reader && mayServe(server) && !server.isBehind
      const kept = affinity?.reader === undefined ? undefined : readers.find(isKept)
      const server = kept ?? this.pick(readers, mayServe) ?? writer
      if (server === writer) tried.clear()
      else tried.add(server)
      return server
    }
    const remember = ({ name, reads }: Server) => {
      if (affinity !== undefined) affinity.reader = name
      return reads
    }
    const candidates = { next, primary: writer, onFound: remember }
    return () => {
      // evaluated at each call, because a transaction may begin long after it was created
      const requirement = this.requirement(consistency, session, affinity)
      const mayFail = typeof requirement === "object" && requirement.otherwise === "fail"
      if (requirement === "primary" || (affinity?.reader === writer.name && !mayFail)) return writer.reads
      if (requirement !== "none") {
        return consistency?._tag === "Bounded"
          ? new BoundedLagSelection(candidates, requirement, toMillis(consistency.lag), sampler)
          : new ReplicaSelection(candidates, requirement)
      }
      if (this.refusesReads()) return new ReplicaSelection(candidates, noReplica)
      const server = next()
      server.onChosen(clock.now())
      return remember(server)
    }
  }

  /**
   * Returns the writes that a read must see: `none`, all writes that the `primary` has committed,
   * or the writes up to the tokens of a requirement.
   */
  private requirement(
    consistency: Consistency | undefined,
    session: Session | undefined,
    affinity: ReadAffinity | undefined
  ): "none" | "primary" | ReadRequirement {
    if (consistency?._tag === "Eventual") return "none"
    if (consistency?._tag === "Strong" || affinity?.written === true) return "primary"
    const explicit = consistency?._tag === "AtLeast" || consistency?._tag === "Bounded" ? consistency : undefined
    const known = session?.known.get(this.database)
    if (explicit === undefined && known === undefined) return "none"
    const otherwise = explicit?.otherwise ?? (explicit === undefined && this.refusesReads() ? "fail" : "primary")
    const maxWait = explicit === undefined ? (session?.maxWaitMillis ?? 0) : waitOf(explicit.maxWait)
    const common = { session, otherwise, maxWait }
    const isUnknown = explicit?._tag === "AtLeast" && !hasPosition(explicit.token)
    if (known === "unknown" || isUnknown) return { ...common, tokens: undefined }
    const seen = known === undefined ? [] : [known]
    return { ...common, tokens: explicit?._tag === "AtLeast" ? [explicit.token, ...seen] : seen }
  }

  /** Checks if a read that the caller has not bound to the primary fails, because all readers are behind. */
  private refusesReads(): boolean {
    if (this.whenAllBehind !== "fail") return false
    const now = clock.now()
    const usable = this.topology.readers.filter((server) => server.isUsable(now))
    return usable.length > 0 && usable.every(({ isBehind }) => isBehind)
  }

  /** Chooses a reader, or none if all are left out. */
  private pick(readers: ReadonlyArray<Server>, mayServe: (server: Server) => boolean): Server | undefined {
    const current = preferred(readers, (server) => !server.isBehind && mayServe(server))
    const servers =
      current.length === 0 && this.whenAllBehind === "leastBehind" ? leastBehind(readers.filter(mayServe)) : current
    if (servers.length < 2) return servers[0]
    const request = { database: this.database, turn: this.turn++, random: clock.random() }
    return servers[this.choose(request, servers.map(candidateOf))] ?? servers[0]
  }
}
