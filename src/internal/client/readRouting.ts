/**
 * Read routing: the choice of the server for a read, by the consistency in force and the `Router`.
 */

import * as Context from "effect/Context"
import type * as Fiber from "effect/Fiber"
import { type Consistency, CurrentConsistency, type Session, waitOf } from "../../Consistency.js"
import type { Choose } from "../../Router.js"
import * as clock from "../concurrency/clock.js"
import type { ConnectionSource } from "../topology/connectionSource.js"
import { type ReadRequirement, ReplicaSelection } from "../topology/replicaSelection.js"
import type { Server, Topology } from "../topology/topology.js"
import { causalSessionOf } from "../transaction/causalSession.js"
import type { ReadAffinity, TransactionContext } from "../transaction/context.js"

/** Chooser of the servers for the reads of one database. */
export class ReadRouting {
  private turn = 0

  constructor(
    private readonly database: string,
    private readonly topology: Topology,
    private readonly choose: Choose
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
    const { writer } = topology
    if (topology.readers.length === 0) return () => writer.reads
    const consistency = this.consistency(fiber)
    const session = causalSessionOf(fiber.currentContext, ambient)
    const tried = new Set<Server>()
    const next = () => {
      const now = clock.now()
      // the readers of a cluster may change between two attempts
      const up = topology.readers.filter((server) => server.isUp(now) && !tried.has(server))
      const server = up.find((_) => _.name === affinity?.reader) ?? this.pick(up) ?? writer
      if (server === writer) tried.clear()
      else tried.add(server)
      return server
    }
    const remember = ({ name, reads }: Server) => {
      if (affinity !== undefined) affinity.reader = name
      return reads
    }
    return () => {
      // evaluated at each call, because a transaction may begin long after it was created
      const requirement = this.requirement(consistency, session, affinity)
      const mayFail = typeof requirement === "object" && requirement.otherwise === "fail"
      if (requirement === "primary" || (affinity?.reader === writer.name && !mayFail)) return writer.reads
      return requirement === "none"
        ? remember(next())
        : new ReplicaSelection({ next, primary: writer, onFound: remember }, requirement)
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
    const atLeast = consistency?._tag === "AtLeast" ? consistency : undefined
    const known = session?.known.get(this.database)
    if (atLeast === undefined && known === undefined) return "none"
    const otherwise = atLeast?.otherwise ?? "primary"
    const maxWait = atLeast === undefined ? (session?.maxWaitMillis ?? 0) : waitOf(atLeast.maxWait)
    const common = { session, otherwise, maxWait }
    if (known === "unknown") return { ...common, tokens: undefined }
    if (atLeast === undefined) return known === undefined ? "none" : { ...common, tokens: [known] }
    return { ...common, tokens: known === undefined ? [atLeast.token] : [atLeast.token, known] }
  }

  private pick(servers: ReadonlyArray<Server>): Server | undefined {
    if (servers.length < 2) return servers[0]
    const request = { database: this.database, turn: this.turn++, random: clock.random() }
    const candidates = servers.map((server) => ({ name: server.name, load: server.reads.load }))
    return servers[this.choose(request, candidates)] ?? servers[0]
  }
}
