/**
 * Connects to the first host of a server that fits.
 */

import * as Dns from "node:dns"
import * as Net from "node:net"
import type { Endpoint, SessionConfig } from "../../DatabaseConfig.js"
import * as clock from "../concurrency/clock.js"
import { isLocal } from "../config/localHost.js"
import type { SecondSocket } from "./cancelRequest.js"
import { mayPass } from "./connectFailure.js"
import type { ConnectFailure, Connection, Owner } from "./connection.js"
import type { Login } from "./credentials.js"
import { type Destination, prepareDestination } from "./destination.js"
import { openConnection } from "./openConnection.js"
import { checkTargetSession } from "./targetSession.js"

type Done = (failure: ConnectFailure | undefined, connection: Connection | undefined) => void

export interface HostOptions {
  /** The time for all hosts together, in ms. Each host gets an equal part of what is left, up to the `hostTimeout` of its server. */
  readonly timeout: number
  readonly readOnly: boolean
  readonly owner: Owner
  readonly credentials: Login
}

const nothing = () => {}

const unknown: ConnectFailure = { reason: "unreachable", error: new Error("no connection was made") }

const shuffled = <A>(all: ReadonlyArray<A>): Array<A> =>
  all
    .map((one) => ({ one, at: clock.random() }))
    .sort((a, b) => a.at - b.at)
    .map(({ one }) => one)

/** Tells an owner of a connection from the moment on at which that is the owner's: one that does not fit never is. */
const gate = (owner: Owner) => {
  let isOpen = false
  const gated: Owner = {
    ...owner,
    lost: (connection, error) => isOpen && owner.lost(connection, error),
    closed: (connection, reason) => isOpen && owner.closed(connection, reason)
  }
  return {
    gated,
    open: () => {
      isOpen = true
    }
  }
}

/** A connection that works and is not preferred. */
interface Spare {
  readonly connection: Connection
  readonly adopt: () => void
}

/** One search through the hosts of a server. */
class Hosts {
  private giveUp = nothing
  private isOver = false
  private spare: Spare | undefined
  private readonly queue: Array<Endpoint>
  private readonly failures: Array<readonly [name: string, failure: ConnectFailure]> = []
  private readonly deadline: number

  constructor(
    private readonly server: Destination,
    private readonly session: SessionConfig,
    private readonly options: HostOptions,
    private readonly done: Done
  ) {
    this.queue = server.isShuffled ? shuffled(server.hosts) : [...server.hosts]
    this.deadline = clock.now() + options.timeout
  }

  stop(): void {
    if (this.isOver) return
    this.isOver = true
    this.giveUp()
    this.spare?.connection.destroy("shutdown")
  }

  next(): void {
    if (this.isOver) return
    const endpoint = this.queue.shift()
    const left = this.deadline - clock.now()
    if (endpoint === undefined || (left <= 0 && this.failures.length > 0)) return this.end()
    const most = this.server.hostTimeout ?? Number.POSITIVE_INFINITY
    this.attempt(endpoint, Math.max(1, Math.min(most, left / (this.queue.length + 1))))
  }

  private attempt(endpoint: Endpoint, timeout: number): void {
    const until = clock.now() + timeout
    const { credentials, owner, readOnly } = this.options
    const { gated, open } = gate(owner)
    let isPrepared = false
    const stop = prepareDestination(this.server, endpoint, credentials, timeout, (outcome) => {
      isPrepared = true
      if ("reason" in outcome) return this.failed(endpoint, outcome)
      const { credentials, destination } = outcome
      const options = { timeout: Math.max(1, until - clock.now()), readOnly, owner: gated, credentials }
      this.giveUp = openConnection(destination, this.session, options, (failure, connection) => {
        if (connection === undefined) return this.failed(endpoint, failure ?? unknown)
        this.judge(endpoint, { connection, adopt: open }, until)
      })
    })
    if (!isPrepared) this.giveUp = stop
  }

  private judge(endpoint: Endpoint, candidate: Spare, until: number): void {
    const { connection } = candidate
    const { hosts, target } = this.server
    // what is normal behind a pooler is not asked for: its one address leads to whatever the pooler says
    const isNormal = target === "read-write" || target === "prefer-standby"
    const wanted = isNormal && hosts.length === 1 && connection.isPooled ? "any" : target
    this.giveUp = () => connection.destroy("shutdown")
    checkTargetSession(connection, wanted, this.options.readOnly, until - clock.now(), (failure) => {
      if (this.isOver) return
      if (failure === undefined) return this.take(candidate)
      if (failure.reason !== "wrongRole") {
        connection.destroy("invalid")
        return this.failed(endpoint, failure)
      }
      if (target === "prefer-standby" && this.spare === undefined) this.spare = candidate
      else connection.destroy("wrongRole")
      this.lookUp(endpoint, connection.secondSocket, until, () => this.failed(endpoint, failure))
    })
  }

  /** A name may have several addresses, of which the socket took the first that answered: the others are tried next. */
  private lookUp(endpoint: Endpoint, here: SecondSocket, until: number, goOn: () => void): void {
    const { address, host } = endpoint
    const isName = address === undefined && Net.isIP(host) === 0 && !isLocal(endpoint)
    if (!isName || this.server.dial !== undefined) return goOn()
    let isLate = false
    const impatient = clock.timer(until - clock.now(), () => {
      isLate = true
      goOn()
    })
    this.giveUp = () => {
      isLate = true
      clock.clear(impatient)
    }
    Dns.lookup(host, { all: true }, (_, addresses = []) => {
      if (isLate) return
      clock.clear(impatient)
      const others = addresses.filter((other) => !("host" in here) || other.address !== here.host)
      this.queue.unshift(...others.map((other) => ({ ...endpoint, address: other.address })))
      goOn()
    })
  }

  private failed(endpoint: Endpoint, failure: ConnectFailure): void {
    const { address, name } = endpoint
    this.failures.push([address === undefined ? name : `${name} (${address})`, failure])
    // what a person has to mend, such as a password, is the same everywhere, and a lockout counts the tries
    if (!mayPass(failure) && failure.reason !== "protocol") this.end()
    else this.next()
  }

  private take({ adopt, connection }: Spare): void {
    if (this.spare !== undefined && this.spare.connection !== connection) this.spare.connection.destroy("excess")
    this.isOver = true
    adopt()
    this.done(undefined, connection)
  }

  private end(): void {
    if (this.spare !== undefined && this.spare.connection.broken === undefined) return this.take(this.spare)
    this.spare?.connection.destroy("invalid")
    this.isOver = true
    this.done(summary(this.failures), undefined)
  }
}

/** All failures in one. A host that is down counts more than one with another role: it may have the role that is wanted. */
const summary = (failures: ReadonlyArray<readonly [name: string, failure: ConnectFailure]>): ConnectFailure => {
  const [only] = failures
  if (only !== undefined && failures.length === 1) return only[1]
  const all = failures.map(([, failure]) => failure)
  const last = all.at(-1)
  const decisive =
    all.find((failure) => !mayPass(failure) && failure.reason !== "protocol") ??
    all.find((failure) => mayPass(failure) && failure.reason !== "wrongRole") ??
    all.find(mayPass) ??
    last
  const words = failures.map(([name, { error }]) => `${name}: ${error.message}`).join("; ")
  return {
    reason: decisive?.reason ?? "unreachable",
    isPermanent: decisive?.isPermanent,
    error: new Error(words, { cause: last?.error })
  }
}

/**
 * Connects to the first host of a server that fits; the returned function gives up. Calls back once, not before this function has returned,
 * unless it was given up.
 */
export const connectFirst = (
  server: Destination,
  session: SessionConfig,
  options: HostOptions,
  done: Done
): (() => void) => {
  const hosts = new Hosts(server, session, options, done)
  hosts.next()
  return () => hosts.stop()
}
