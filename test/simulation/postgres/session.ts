/**
 * One session of the scripted server: the login, and the messages of the simple and the extended
 * protocol. `SessionState` has the transaction.
 */
import { createHash } from "node:crypto"
import { loop } from "../loop/loop.js"
import type { Link, ServerEnd } from "../network/network.js"
import { type Blocker, type CommandResult, type FoundCommand, findCommand, SqlFailure } from "./commands.js"
import type { PostgresServer } from "./server.js"
import { SessionState } from "./sessionState.js"
import * as wire from "./wire.js"

/** The time after which a waiting transaction looks for a deadlock, in ms (`deadlock_timeout`). */
const deadlockTimeout = 1000

type Running = Generator<Blocker, CommandResult, void>

interface Portal extends FoundCommand {
  readonly values: ReadonlyArray<string | null>
  /** The rows that a limited Execute has left. */
  rest: ReadonlyArray<ReadonlyArray<string | null>> | undefined
  tag: string
}

/** Continuation after a command. */
interface Continuation {
  /** True if the messages up to the next Sync are skipped after a failure. */
  readonly isExtended: boolean
  readonly onResult: (result: CommandResult) => void
  readonly onFailed: () => void
}

/** Command that waits. */
interface Waiting {
  /** False while a COMMIT can be neither cancelled nor timed out. */
  readonly isInterruptible: boolean
  readonly fail: (failure: SqlFailure) => void
  readonly stop: () => void
}

/** Session of one connection. */
export class Session extends SessionState implements ServerEnd {
  private readonly reader = new wire.MessageReader()
  private readonly prepared = new Map<string, FoundCommand>()
  private readonly portals = new Map<string, Portal>()
  private output: Array<Buffer> = []
  private phase: "start" | "password" | "ready" | "closed" = "start"
  private salt: Buffer = Buffer.alloc(4)
  private isSkipping = false
  private isClientGone = false
  private cancelWork: (() => void) | undefined = undefined
  private waiting: Waiting | undefined = undefined
  private cancelIdleTimeout: (() => void) | undefined = undefined
  private statementSince = 0
  private isStandbyReported = false

  constructor(
    server: PostgresServer,
    readonly link: Link
  ) {
    super(server)
  }

  /** Checks if a command is running or waits. */
  get isBusy(): boolean {
    return this.waiting !== undefined || this.cancelWork !== undefined
  }

  get isReady(): boolean {
    return this.phase === "ready"
  }

  get isClosed(): boolean {
    return this.phase === "closed"
  }

  onData(chunk: Buffer): void {
    if (this.phase === "closed") return
    this.reader.add(chunk)
    this.cancelIdleTimeout?.()
    this.cancelIdleTimeout = undefined
    this.wake()
  }

  onEnd(): void {
    this.isClientGone = true
    this.wake()
  }

  onReset(): void {
    // a session that runs a command does not read from its socket
    if (this.waiting !== undefined) this.isClientGone = true
    else this.close()
  }

  /** Continues after the server was frozen. */
  wake(): void {
    if (this.phase === "closed" || this.waiting !== undefined || this.cancelWork !== undefined) return
    if (this.server.isFrozen) return
    this.cancelWork = loop.schedule(this.server.workTime(), () => {
      this.cancelWork = undefined
      if (!this.server.isFrozen) this.server.guard(() => this.pump())
    })
  }

  /** Cancels the command in progress, as a cancel request does. */
  cancel(): void {
    const { waiting } = this
    if (waiting?.isInterruptible) {
      waiting.fail(new SqlFailure("57014", "canceling statement due to user request"))
    }
  }

  /** Ends the session with a message to the client. */
  terminate(code: string, message: string): void {
    if (this.phase === "closed") return
    this.send(wire.errorResponse({ severity: "FATAL", code, message }))
    this.flush()
    this.close()
  }

  /** Ends the session without a message. */
  close(reset = false): void {
    if (this.phase === "closed") return
    this.phase = "closed"
    this.cancelWork?.()
    this.waiting?.stop()
    this.waiting = undefined
    this.cancelIdleTimeout?.()
    this.rollback()
    this.server.sessions.delete(this.processId)
    this.server.open.delete(this)
    if (reset) this.link.resetByServer()
    else this.link.endByServer()
  }

  protected reportStatement(tag: string): void {
    this.server.reports.onStatement(this, tag)
  }

  protected resetClient(): void {
    this.link.resetClient()
    this.isClientGone = true
  }

  private send(message: Buffer): void {
    this.output.push(message)
  }

  private flush(): void {
    if (this.output.length === 0) return
    const all = this.output
    this.output = []
    this.link.sendToClient(all.length === 1 && all[0] !== undefined ? all[0] : Buffer.concat(all))
  }

  private pump(): void {
    while (this.phase === "start" && this.onStart()) {}
    while ((this.phase === "password" || this.phase === "ready") && this.waiting === undefined) {
      const message = this.reader.next()
      if (message === undefined) break
      this.handle(message)
    }
    if (this.isClientGone && this.waiting === undefined) this.close()
  }

  private onStart(): boolean {
    const message = this.reader.start()
    if (message === undefined) return false
    if (message.type === "ssl") {
      this.send(wire.noTls)
      this.flush()
      return true
    }
    if (message.type === "cancel") {
      this.server.cancel(message.processId, message.secretKey)
      this.close()
      return false
    }
    const refusal = this.server.refusal()
    if (refusal !== undefined) {
      this.terminate(...refusal)
      return false
    }
    this.logIn(message.parameters)
    const { authentication } = this.server
    if (authentication === "trust") this.accept()
    else {
      this.phase = "password"
      this.salt = this.server.salt()
      this.send(authentication === "md5" ? wire.md5Password(this.salt) : wire.cleartextPassword)
      this.flush()
    }
    return true
  }

  private onPassword(text: string): void {
    const { authentication, password } = this.server
    const md5 = (value: string | Buffer) => createHash("md5").update(value).digest("hex")
    const inner = md5(`${password}${this.user}`)
    const expected = authentication === "md5" ? `md5${md5(Buffer.concat([Buffer.from(inner), this.salt]))}` : password
    if (text === expected) this.accept()
    else this.terminate("28P01", `password authentication failed for user "${this.user}"`)
  }

  private accept(): void {
    this.phase = "ready"
    this.server.sessions.set(this.processId, this)
    this.isStandbyReported = this.server.isStandby
    this.send(wire.authenticationOk)
    const parameters = {
      server_version: `${this.server.version}.1`,
      server_encoding: "UTF8",
      client_encoding: "UTF8",
      DateStyle: "ISO, MDY",
      IntervalStyle: "postgres",
      integer_datetimes: "on",
      standard_conforming_strings: "on",
      TimeZone: "UTC",
      is_superuser: "on",
      application_name: this.applicationName,
      ...(this.server.version >= 14
        ? {
            in_hot_standby: this.server.isStandby ? "on" : "off",
            default_transaction_read_only: this.isReadOnlyByDefault ? "on" : "off"
          }
        : {}),
      ...(this.server.version >= 18 ? { search_path: '"$user", public' } : {})
    }
    for (const [name, value] of Object.entries(parameters)) this.send(wire.parameterStatus(name, value))
    this.send(wire.backendKeyData(this.processId, this.secretKey))
    this.ready()
  }

  /** Ends an exchange. */
  private ready(): void {
    const { server } = this
    if (this.isStandbyReported && !server.isStandby) {
      this.isStandbyReported = false
      if (server.version >= 14) this.send(wire.parameterStatus("in_hot_standby", "off"))
    }
    this.send(wire.readyForQuery(this.status))
    if (this.lostReply === "reset") return this.close(true)
    if (this.lostReply === "dead") this.link.die("both")
    this.lostReply = undefined
    this.flush()
    const limit = this.setting("idle_in_transaction_session_timeout")
    if (this.status !== "I" && limit > 0 && this.phase === "ready") {
      this.cancelIdleTimeout = loop.schedule(limit, () =>
        this.terminate("25P03", "terminating connection due to idle-in-transaction timeout")
      )
    }
  }

  private handle(message: wire.FrontendMessage): void {
    if (message.type === "terminate") return this.close()
    if (this.phase === "password") {
      if (message.type !== "password") throw new Error(`${message.type} in place of a password`)
      return this.onPassword(message.text)
    }
    if (message.type === "sync") return this.onSync()
    if (this.isSkipping) return
    switch (message.type) {
      case "query":
        return this.onQuery(message.text)
      case "parse":
        return this.attempt(() => {
          if (message.name !== "" && this.prepared.has(message.name)) {
            throw new SqlFailure("42P05", `prepared statement "${message.name}" already exists`)
          }
          this.prepared.set(message.name, this.find(message.text))
          this.send(wire.parseComplete)
        })
      case "bind":
        return this.attempt(() => {
          const found = this.prepared.get(message.statement)
          if (found === undefined) {
            throw new SqlFailure("26000", `prepared statement "${message.statement}" does not exist`)
          }
          this.portals.set(message.portal, { ...found, values: message.values, rest: undefined, tag: "" })
          this.send(wire.bindComplete)
        })
      case "describe": {
        const columns = this.portals.get(message.name)?.command.columns
        if (message.kind !== "P") throw new Error("the scripted server describes portals only")
        return this.send(columns === undefined ? wire.noData : wire.rowDescription(columns))
      }
      case "execute":
        return this.onExecute(message.portal, message.rows)
      case "close":
        if (message.kind === "S") this.prepared.delete(message.name)
        else this.portals.delete(message.name)
        return this.send(wire.closeComplete)
      case "password":
        throw new Error("a password after the login")
    }
  }

  private find(text: string): FoundCommand {
    const found = findCommand(text)
    if (found === undefined) throw new Error(`the scripted server does not know this command: ${text}`)
    return found
  }

  private attempt(act: () => void): void {
    try {
      act()
    } catch (cause) {
      if (!(cause instanceof SqlFailure)) throw cause
      this.fail(cause, true)
    }
  }

  private fail({ code, message, relation }: SqlFailure, isExtended: boolean): void {
    this.send(wire.errorResponse({ severity: "ERROR", code, message, ...relation }))
    this.onError()
    this.isSkipping = isExtended
  }

  private onQuery(text: string): void {
    const found = this.find(text)
    this.run(found, [], {
      isExtended: false,
      onResult: (result) => {
        const { columns } = found.command
        if (columns !== undefined) this.send(wire.rowDescription(columns))
        for (const row of result.rows ?? []) this.send(wire.dataRow(row))
        this.send(wire.commandComplete(result.tag))
        this.onSync()
      },
      onFailed: () => this.onSync()
    })
  }

  private onExecute(name: string, limit: number): void {
    const portal = this.portals.get(name)
    if (portal === undefined) return this.fail(new SqlFailure("34000", `portal "${name}" does not exist`), true)
    const show = (rows: ReadonlyArray<ReadonlyArray<string | null>>) => {
      const shown = limit > 0 ? rows.slice(0, limit) : rows
      for (const row of shown) this.send(wire.dataRow(row))
      portal.rest = rows.slice(shown.length)
      this.send(portal.rest.length > 0 ? wire.portalSuspended : wire.commandComplete(portal.tag))
    }
    if (portal.rest !== undefined) return show(portal.rest)
    this.run(portal, portal.values, {
      isExtended: true,
      onResult: (result) => {
        portal.tag = result.tag
        show(result.rows ?? [])
      },
      onFailed: () => {}
    })
  }

  /** Ends an exchange, with the transaction of its statements if they had no BEGIN. */
  private onSync(): void {
    this.isSkipping = false
    const { transaction } = this
    if (transaction === undefined || transaction.isExplicit) return this.ready()
    const end = () => {
      if (this.phase === "ready") this.ready()
    }
    if (transaction.xid === undefined || transaction.isFailed) {
      this.rollback()
      return end()
    }
    this.run(this.find("COMMIT"), [], { isExtended: false, onResult: end, onFailed: end })
  }

  /** Runs a command, which may wait, and continues with the messages after it. */
  private run(
    { command, groups }: FoundCommand,
    values: ReadonlyArray<string | null>,
    { isExtended, onFailed, onResult }: Continuation
  ): void {
    const fail = (failure: SqlFailure) => {
      this.fail(failure, isExtended)
      onFailed()
    }
    if (this.transaction?.isFailed && command.isControl !== true) {
      return fail(new SqlFailure("25P02", "current transaction is aborted, commands ignored until end"))
    }
    this.ensureTransaction()
    this.statementSince = loop.now
    this.drive(command.run(this, { values, groups }), undefined, onResult, fail)
  }

  private drive(
    running: Running,
    failure: SqlFailure | undefined,
    onResult: (result: CommandResult) => void,
    onFailed: (failure: SqlFailure) => void
  ): void {
    try {
      let step = failure === undefined ? running.next() : running.throw(failure)
      for (;;) {
        if (this.phase === "closed") return
        if (step.done) return onResult(step.value)
        if (step.value.kind !== "lock" || !this.takeLock(step.value.key)) break
        step = running.next()
      }
      this.await(step.value, (failure) => {
        this.drive(running, failure, onResult, onFailed)
        if (this.waiting === undefined) this.server.guard(() => this.pump())
      })
    } catch (cause) {
      if (!(cause instanceof SqlFailure)) throw cause
      if (this.phase !== "closed") onFailed(cause)
    }
  }

  /** Waits for a lock or a time, within the timeouts of the session. */
  private await(blocker: Blocker, proceed: (failure: SqlFailure | undefined) => void): void {
    const isInterruptible = blocker.kind === "lock" || blocker.isFirm !== true
    const cancels: Array<() => void> = []
    const stop = () => {
      for (const cancel of cancels) cancel()
    }
    const end = (failure: SqlFailure | undefined) => {
      if (this.server.isFrozen) {
        cancels.push(loop.schedule(this.server.thawIn(), () => end(failure)))
        return
      }
      stop()
      this.waiting = undefined
      this.server.guard(() => proceed(failure))
    }
    const limit = (millis: number, failure: SqlFailure) => {
      if (millis > 0) cancels.push(loop.schedule(millis, () => end(failure)))
    }
    this.waiting = { isInterruptible, fail: end, stop }
    if (blocker.kind === "sleep") cancels.push(loop.schedule(blocker.millis, () => end(undefined)))
    else {
      cancels.push(this.waitForLock(blocker.key, () => loop.schedule(0, () => end(undefined))))
      limit(this.setting("lock_timeout"), new SqlFailure("55P03", "canceling statement due to lock timeout"))
      cancels.push(
        loop.schedule(deadlockTimeout, () => {
          if (this.isDeadlocked) end(new SqlFailure("40P01", "deadlock detected"))
        })
      )
    }
    const timeout = this.setting("statement_timeout")
    if (isInterruptible && timeout > 0) {
      const left = Math.max(1, this.statementSince + timeout - loop.now)
      limit(left, new SqlFailure("57014", "canceling statement due to statement timeout"))
    }
  }
}
