/**
 * The connect to the hosts of a server, one after the other, until one has the required role.
 */

import * as Dns from "node:dns"
import * as Net from "node:net"
import type { Endpoint, SessionConfig, TargetSessionAttrs } from "../../DatabaseConfig.js"
import * as clock from "../concurrency/clock.js"
import { isLocal } from "../config/localHost.js"
import { combineFailures } from "./combineFailures.js"
import { mayPass } from "./connectFailure.js"
import type { ConnectFailure, Connection, Owner } from "./connection.js"
import { connectToHost } from "./connectToHost.js"
import type { Login } from "./credentials.js"
import { type Destination, prepareDestination } from "./destination.js"
import type { SecondSocket } from "./secondSocket.js"
import { checkTargetSession } from "./targetSessionCheck.js"

type OnConnected = (failure: ConnectFailure | undefined, connection: Connection | undefined) => void

export interface HostOptions {
  /**
   * The timeout for all hosts together, in ms. Each host gets an equal part of the remaining time,
   * but no more than the `hostTimeout` of the server.
   */
  readonly timeout: number
  readonly readOnly: boolean
  readonly owner: Owner
  readonly credentials: Login
  /** The preferred role, for a server of the target `any`. */
  readonly preferred?: TargetSessionAttrs | undefined
}

const nothing = () => {}

const unknown: ConnectFailure = { reason: "unreachable", error: new Error("no connection was made") }

const shuffled = <A>(all: ReadonlyArray<A>): Array<A> =>
  all
    .map((one) => ({ one, at: clock.random() }))
    .sort((a, b) => a.at - b.at)
    .map(({ one }) => one)

/**
 * Drops the events `lost` and `closed` of a connection until it is assigned to its owner. A
 * connection to a server of the wrong role is never assigned.
 */
const withholdEvents = (owner: Owner) => {
  let isAssigned = false
  const withheld: Owner = {
    ...owner,
    lost: (connection, error) => isAssigned && owner.lost(connection, error),
    closed: (connection, reason) => isAssigned && owner.closed(connection, reason)
  }
  return {
    withheld,
    assign: () => {
      isAssigned = true
    }
  }
}

/** Usable connection; `assign` assigns it to its owner. */
interface Candidate {
  readonly connection: Connection
  readonly assign: () => void
}

/** Attempts to connect to the hosts of a server, one after the other. */
class HostAttempts {
  private cancelStep = nothing
  private isOver = false
  /**
   * A connection that is used if no host has the preferred role, and the reason why its own host
   * does not have that role.
   */
  private fallback: (Candidate & { readonly failure: ConnectFailure }) | undefined
  private readonly queue: Array<Endpoint>
  private readonly failures: Array<readonly [name: string, failure: ConnectFailure]> = []
  private readonly deadline: number

  constructor(
    private readonly server: Destination,
    private readonly session: SessionConfig,
    private readonly options: HostOptions,
    private readonly callback: OnConnected
  ) {
    this.queue = server.isShuffled ? shuffled(server.hosts) : [...server.hosts]
    this.deadline = clock.now() + options.timeout
  }

  cancel(): void {
    if (this.isOver) return
    this.isOver = true
    this.cancelStep()
    this.fallback?.connection.destroy("shutdown")
  }

  next(): void {
    if (this.isOver) return
    const endpoint = this.queue.shift()
    const left = this.deadline - clock.now()
    if (endpoint === undefined || (left <= 0 && this.failures.length > 0)) return this.end()
    const maxTime = this.server.hostTimeout ?? Number.POSITIVE_INFINITY
    this.attempt(endpoint, Math.max(1, Math.min(maxTime, left / (this.queue.length + 1))))
  }

  private attempt(endpoint: Endpoint, timeout: number): void {
    const until = clock.now() + timeout
    const { credentials, owner, readOnly } = this.options
    const { assign, withheld } = withholdEvents(owner)
    let isPrepared = false
    const cancelPreparation = prepareDestination(this.server, endpoint, credentials, timeout, (result) => {
      isPrepared = true
      if ("reason" in result) return this.onFailure(endpoint, result)
      const { credentials, destination } = result
      const options = { timeout: Math.max(1, until - clock.now()), readOnly, owner: withheld, credentials }
      this.cancelStep = connectToHost(destination, this.session, options, (failure, connection) => {
        if (connection === undefined) return this.onFailure(endpoint, failure ?? unknown)
        this.judge(endpoint, { connection, assign }, until)
      })
    })
    if (!isPrepared) this.cancelStep = cancelPreparation
  }

  private judge(endpoint: Endpoint, candidate: Candidate, until: number): void {
    const { connection } = candidate
    const { hosts } = this.server
    const target = this.options.preferred ?? this.server.target
    // the default targets are not checked behind a pooler with one address, because the pooler
    // chooses the server
    const isDefault = target === "read-write" || target === "prefer-standby"
    const required = isDefault && hosts.length === 1 && connection.isPooled ? "any" : target
    this.cancelStep = () => connection.destroy("shutdown")
    checkTargetSession(connection, required, this.options.readOnly, until - clock.now(), (failure) => {
      if (this.isOver) return
      if (failure === undefined) return this.take(candidate)
      if (failure.reason !== "wrongRole") {
        connection.destroy("invalid")
        return this.onFailure(endpoint, failure)
      }
      const isPreference = target === "prefer-standby" || this.options.preferred !== undefined
      if (isPreference && this.fallback === undefined) this.fallback = { ...candidate, failure }
      else connection.destroy("wrongRole")
      this.addOtherAddresses(endpoint, connection.secondSocket, until, () => this.onFailure(endpoint, failure))
    })
  }

  /**
   * Adds the other addresses of a host name to the queue, because the socket has connected only to
   * the first address that answered.
   */
  private addOtherAddresses(endpoint: Endpoint, current: SecondSocket, until: number, proceed: () => void): void {
    const { address, host } = endpoint
    const isName = address === undefined && Net.isIP(host) === 0 && !isLocal(endpoint)
    if (!isName || this.server.dial !== undefined) return proceed()
    let isOver = false
    const timer = clock.timer(until - clock.now(), () => {
      isOver = true
      proceed()
    })
    this.cancelStep = () => {
      isOver = true
      clock.clear(timer)
    }
    Dns.lookup(host, { all: true }, (_, addresses = []) => {
      if (isOver) return
      clock.clear(timer)
      const others = addresses.filter((other) => !("host" in current) || other.address !== current.host)
      this.queue.unshift(...others.map((other) => ({ ...endpoint, address: other.address })))
      proceed()
    })
  }

  private onFailure(endpoint: Endpoint, failure: ConnectFailure): void {
    const { address, name } = endpoint
    this.failures.push([address === undefined ? name : `${name} (${address})`, failure])
    // a permanent failure, such as a wrong password, would be the same on every host, and a server
    // may lock a user out after some attempts
    if (!mayPass(failure) && failure.reason !== "protocol") this.end()
    else this.next()
  }

  private take({ assign, connection }: Candidate, failure?: ConnectFailure | undefined): void {
    if (this.fallback !== undefined && this.fallback.connection !== connection)
      this.fallback.connection.destroy("excess")
    this.isOver = true
    assign()
    this.callback(failure, connection)
  }

  private end(): void {
    const { preferred } = this.options
    if (this.fallback !== undefined && this.fallback.connection.broken === undefined) {
      return this.take(this.fallback, preferred === undefined ? undefined : this.fallback.failure)
    }
    this.fallback?.connection.destroy("invalid")
    this.isOver = true
    this.callback(combineFailures(this.failures), undefined)
  }
}

/**
 * Connects to the first host of a server that has the required role. `callback` is called once,
 * unless the returned function cancels before: with a failure, with a connection, or with both if no
 * host has the preferred role.
 */
export const connectToFirstHost = (
  server: Destination,
  session: SessionConfig,
  options: HostOptions,
  callback: OnConnected
): (() => void) => {
  const attempts = new HostAttempts(server, session, options, callback)
  attempts.next()
  return () => attempts.cancel()
}
