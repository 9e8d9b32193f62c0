/**
 * The connections for the proofs of COMMITs whose answers were lost. They come from the pool of the
 * writer, before those of its waiters, because there is little time for a proof. A pause of the
 * pool holds no proof back, because the transaction has begun before the pause, and a drain waits
 * for the proof. So during a pause each proof opens a connection in place of the one that was lost.
 */
import type { Connection } from "../connection/connection.js"
import type { Pool } from "../pool/pool.js"
import type { PoolDependencies } from "../pool/poolDependencies.js"
import type { ConnectionSource, OnCheckout } from "./connectionSource.js"
import { UnpooledConnections } from "./unpooledConnections.js"

const nothing = () => {}

/** Proofs of the COMMITs of one database. */
export class Proofs {
  private readonly inProgress = new Set<Proof>()
  /** The connections outside of the pool, until their sockets are closed. */
  private readonly own = new Set<UnpooledConnections>()
  private isClosed = false
  private onAllClosed = nothing

  constructor(
    readonly pool: Pool,
    private readonly onEnded: () => void
  ) {}

  /** The number of proofs in progress, without those that use a connection of the pool. */
  get countOutsidePool(): number {
    return [...this.inProgress].filter(({ pooled }) => pooled === undefined).length
  }

  /**
   * True if the pool would hold a proof back. A pool that is closed refuses each checkout at once.
   */
  get isHeldBack(): boolean {
    return this.pool.isPaused && !this.isClosed
  }

  /** Begins a proof. `end` of the returned source must be called. */
  begin(): Proof {
    const proof = new Proof(this)
    this.inProgress.add(proof)
    return proof
  }

  /** Lets the proofs go on that wait for the pool, which was paused. */
  onPaused(): void {
    for (const proof of this.inProgress) proof.onPoolChanged()
  }

  /** Ends the proofs after the pool was closed; `callback` is called when their sockets are closed. */
  close(callback: () => void): void {
    this.isClosed = true
    // this may end proofs, and close their connections
    for (const proof of this.inProgress) proof.onPoolChanged()
    if (this.own.size === 0) return callback()
    this.onAllClosed = callback
    for (const own of [...this.own]) this.closeOwn(own)
  }

  /** @internal */
  openOwn(): UnpooledConnections {
    const own = new UnpooledConnections(this.pool.options)
    this.own.add(own)
    return own
  }

  /** @internal */
  end(proof: Proof, own: UnpooledConnections | undefined): void {
    this.inProgress.delete(proof)
    if (own !== undefined) this.closeOwn(own)
    this.onEnded()
  }

  private closeOwn(own: UnpooledConnections): void {
    own.close(() => {
      if (this.own.delete(own) && this.own.size === 0) this.onAllClosed()
    })
  }
}

/** Source of the connections of one proof, which uses one at a time. */
export class Proof implements ConnectionSource {
  /** The connection of the pool that the proof uses. */
  pooled: Connection | undefined
  private own: UnpooledConnections | undefined
  /** Moves the checkout in progress to the other source, if it should use that now. */
  private move: (() => void) | undefined

  constructor(private readonly proofs: Proofs) {}

  get options(): PoolDependencies {
    return this.proofs.pool.options
  }

  checkout(deadline: number, holding: ReadonlyArray<Connection>, callback: OnCheckout): () => void {
    let cancel = nothing
    let isOutside: boolean | undefined
    const start = () => {
      const { isHeldBack, pool } = this.proofs
      if (isHeldBack === isOutside) return
      isOutside = isHeldBack
      cancel()
      const finish: OnCheckout = (failure, connection) => {
        this.move = undefined
        if (!isHeldBack) this.pooled = connection
        callback(failure, connection)
      }
      if (isHeldBack) {
        this.own ??= this.proofs.openOwn()
        cancel = this.own.checkout(deadline, holding, finish)
      } else cancel = pool.checkout(deadline, holding, finish, undefined, true)
    }
    this.move = start
    start()
    return () => {
      this.move = undefined
      cancel()
    }
  }

  checkin(connection: Connection): void {
    if (connection !== this.pooled) return this.own?.checkin(connection)
    this.pooled = undefined
    this.proofs.pool.checkin(connection)
  }

  /** Moves the checkout in progress, after the pool was paused or closed. */
  onPoolChanged(): void {
    this.move?.()
  }

  /** Ends the proof. */
  end(): void {
    this.proofs.end(this, this.own)
  }
}
