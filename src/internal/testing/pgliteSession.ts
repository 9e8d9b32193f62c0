/**
 * The one session of a PGlite, which several connections share: each has it for one transaction.
 */
import { FifoLock } from "../concurrency/fifoLock.js"
import { letterOf, MessageSplitter, makeMessage } from "./messageSplitter.js"

/** Part of a PGlite that is used. */
export interface Pglite {
  /** Sends messages of the protocol, and returns the answers. */
  readonly execProtocolRaw: (messages: Uint8Array) => Promise<Uint8Array>
  readonly close: () => Promise<void>
}

/** Connection to a PGlite. */
export interface PgliteConnection {
  /** The settings of its session, as its startup message has them. */
  readonly settings: ReadonlyMap<string, string>
  /** True if it has listened to a channel. */
  readonly listens: boolean
  readonly receive: (messages: Buffer) => void
  readonly fail: (error: unknown) => void
}

/** Answer to a part of an exchange. */
interface Answer {
  readonly messages: ReadonlyArray<Buffer>
  readonly notifications: ReadonlyArray<Buffer>
  /** The state of the transaction, if the exchange is over. */
  readonly status: string | undefined
}

const quote = (text: string, mark: string): string => mark + text.replaceAll(mark, mark + mark) + mark

/** The session of a PGlite, and its connections. */
export class PgliteSession {
  readonly connections = new Set<PgliteConnection>()
  private readonly lock = new FifoLock()
  private owner: PgliteConnection | undefined
  /** The number of exchanges of the owner that are not answered. */
  private pending = 0
  private greeting: Promise<Answer> | undefined
  private last: PgliteConnection | undefined
  /** The messages are executed one after the other, also those of one connection. */
  private queue: Promise<unknown> = Promise.resolve()

  constructor(private readonly pglite: Pglite) {}

  /**
   * Starts the session with the startup message of the first connection. Each later connection receives
   * the same answer, so that it need not wait for a transaction.
   */
  start(connection: PgliteConnection, startup: Buffer): void {
    this.greeting ??= this.send(startup)
    this.greeting.then(
      ({ messages }) => connection.receive(Buffer.concat(messages)),
      (cause) => connection.fail(cause)
    )
  }

  /** Calls back when a connection has the session; the returned function leaves the queue. */
  acquire(connection: PgliteConnection, acquired: () => void): () => void {
    if (this.owner === connection) {
      acquired()
      return () => {}
    }
    return this.lock.acquire(() => {
      this.owner = connection
      acquired()
    })
  }

  /** Executes messages of the connection that has the session. */
  execute(connection: PgliteConnection, messages: Buffer): void {
    this.pending++
    this.queue = this.queue.then(async () => {
      try {
        await this.applySettings(connection)
        const { messages: replies, notifications, status } = await this.send(messages)
        connection.receive(Buffer.concat(replies))
        for (const listener of this.connections)
          if (listener.listens) for (const notification of notifications) listener.receive(notification)
        this.pending--
        // the next exchange of the connection may begin a transaction
        if (status === "I" && this.pending === 0) this.release(connection)
      } catch (cause) {
        this.pending--
        connection.fail(cause)
        this.release(connection)
      }
    })
  }

  /** Ends a connection: rolls back its transaction, if it has one. */
  end(connection: PgliteConnection): void {
    this.connections.delete(connection)
    if (this.owner === connection) this.execute(connection, makeMessage("Q", ["ROLLBACK"]))
  }

  private release(connection: PgliteConnection): void {
    if (this.owner !== connection) return
    this.owner = undefined
    this.lock.release()
  }

  /** Sets the settings of a connection, and unsets those of the connection before. */
  private async applySettings(connection: PgliteConnection): Promise<void> {
    if (this.last === connection) return
    const others = [...(this.last?.settings.keys() ?? [])].filter((name) => !connection.settings.has(name))
    const texts = [
      ...others.map((name) => `SET ${quote(name, '"')} TO DEFAULT`),
      ...Array.from(connection.settings, ([name, value]) => `SET ${quote(name, '"')} TO ${quote(value, "'")}`)
    ]
    this.last = connection
    for (const text of texts) await this.send(makeMessage("Q", [text]))
  }

  private async send(bytes: Buffer): Promise<Answer> {
    const reply = await this.pglite.execProtocolRaw(bytes)
    const messages: Array<Buffer> = []
    const notifications: Array<Buffer> = []
    let status: string | undefined
    const sort = (message: Buffer) => {
      const letter = letterOf(message)
      if (letter === "Z") status = String.fromCharCode(message[5] ?? 0)
      if (letter === "A") notifications.push(message)
      else messages.push(message)
    }
    new MessageSplitter().split(Buffer.from(reply), () => true, sort)
    return { messages, notifications, status }
  }
}
