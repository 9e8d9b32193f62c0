/**
 * The selection of a replica that is at most some time behind. The time becomes a position of
 * the primary that has everything which was committed by that moment. A replica must have reached it, so
 * no clocks are compared.
 */
import * as clock from "../concurrency/clock.js"
import type { Connection } from "../connection/connection.js"
import { positionTimeout } from "../consistency/queryPosition.js"
import type { Caller } from "../pool/caller.js"
import type { PoolDependencies } from "../pool/poolDependencies.js"
import type { ConnectionSource, OnCheckout } from "./connectionSource.js"
import type { PrimarySampler } from "./primarySampler.js"
import { type ReadRequirement, type ReplicaCandidates, ReplicaSelection } from "./replicaSelection.js"

/** Source of the connection of a read with a bounded lag. */
export class BoundedLagSelection implements ConnectionSource {
  private selection: ReplicaSelection

  constructor(
    private readonly candidates: ReplicaCandidates,
    /** The requirement, with the tokens of the causal session. */
    private readonly requirement: ReadRequirement,
    private readonly maxLag: number,
    private readonly sampler: PrimarySampler
  ) {
    this.selection = new ReplicaSelection(candidates, requirement)
  }

  get options(): PoolDependencies {
    return this.selection.options
  }

  checkin(connection: Connection): void {
    this.selection.checkin(connection)
  }

  checkout(deadline: number, holding: ReadonlyArray<Connection>, callback: OnCheckout, caller?: Caller): () => void {
    // a write at an unknown position is certain to be on the primary only
    if (this.requirement.tokens === undefined) return this.selection.checkout(deadline, holding, callback, caller)
    const now = clock.now()
    const timeout = Math.min(positionTimeout, (deadline - now) / 2)
    let cancel = () => {}
    const cancelSample = this.sampler.since(now - this.maxLag, timeout, (position) => {
      const { tokens } = this.requirement
      const { database } = this.options
      // without a position, only the primary is certain to be current
      const required = position && tokens && ([{ database, ...position }, ...tokens] as const)
      this.selection = new ReplicaSelection(this.candidates, { ...this.requirement, tokens: required, isBounded: true })
      cancel = this.selection.checkout(deadline, holding, callback, caller)
    })
    return () => {
      cancelSample()
      cancel()
    }
  }
}
