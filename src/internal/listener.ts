/**
 * LISTEN: one connection for all channels of a database, opened with the first listener and closed with the last.
 */
import type { SqlError } from "@effect/sql/SqlError"
import * as Effect from "effect/Effect"
import * as RcRef from "effect/RcRef"
import type * as Scope from "effect/Scope"
import * as Stream from "effect/Stream"
import pg from "pg"
import type { Connection } from "../Connection.js"
import type { DatabaseConfig } from "../DatabaseConfig.js"
import { ConnectFailed, Disconnected, QueryFailed, toSqlError } from "../DatabaseError.js"
import type { CredentialSource } from "./credentials.js"
import { toStatementError } from "./failure.js"
import { open as openConnection } from "./opening.js"

interface Subscriber {
  readonly message: (payload: string) => void
  readonly fail: (error: SqlError) => void
}

/** A listening connection and who hears what on it. */
class Line {
  private readonly channels = new Map<string, Set<Subscriber>>()
  private readonly turn = Effect.unsafeMakeSemaphore(1)

  constructor(
    readonly connection: Connection,
    private readonly place: { readonly database: string; readonly server: string },
    private readonly patience: number
  ) {
    connection.onNotification((channel, payload) => {
      for (const subscriber of this.channels.get(channel) ?? []) subscriber.message(payload)
    })
  }

  /** Hears a channel for as long as the scope lasts. Others on the same channel are not affected. */
  subscribe(channel: string, subscriber: Subscriber): Effect.Effect<void, SqlError, Scope.Scope> {
    const join = this.turn.withPermits(1)(
      Effect.suspend(() => {
        const known = this.channels.get(channel)
        if (known !== undefined) return Effect.sync(() => void known.add(subscriber))
        return Effect.map(this.command(`LISTEN ${pg.escapeIdentifier(channel)}`, this.patience), () => {
          this.channels.set(channel, new Set([subscriber]))
        })
      })
    )
    const leave = this.turn.withPermits(1)(
      Effect.suspend(() => {
        const known = this.channels.get(channel)
        if (known === undefined || !known.delete(subscriber) || known.size > 0) return Effect.void
        this.channels.delete(channel)
        // a connection that is gone hears nothing anyway
        return Effect.catchAll(this.command(`UNLISTEN ${pg.escapeIdentifier(channel)}`, 1000), () => Effect.void)
      })
    )
    return Effect.acquireReleaseInterruptible(join, () => leave)
  }

  fail(cause: Error): void {
    const error = toSqlError(new Disconnected({ ...this.place, cause, outcome: "undone" }))
    for (const channel of this.channels.values()) for (const subscriber of channel) subscriber.fail(error)
    this.channels.clear()
  }

  /** One command; it is answered within its time, or the connection is given up, for an interruption waits for that. */
  private command(text: string, patience: number): Effect.Effect<void, SqlError> {
    return Effect.async((resume) => {
      let onAnswer = () => {}
      let answered = false
      const impatient = setTimeout(() => this.connection.destroy("broken"), patience)
      this.connection.run([], { text, values: [], rows: "object", prepare: false, simple: false }, [], (failure) => {
        clearTimeout(impatient)
        answered = true
        onAnswer()
        resume(
          failure === undefined ? Effect.void : Effect.fail(toSqlError(toStatementError(this.place, failure, "undone")))
        )
      })
      return Effect.async<void>((settled) => {
        if (answered) return settled(Effect.void)
        const moreImpatient = setTimeout(() => this.connection.destroy("broken"), 1000)
        onAnswer = () => {
          clearTimeout(moreImpatient)
          settled(Effect.void)
        }
      })
    })
  }
}

const open = (config: DatabaseConfig, credentials: CredentialSource): Effect.Effect<Line, SqlError, Scope.Scope> =>
  Effect.suspend(() => {
    const place = { database: config.name, server: config.writer.name }
    const { connectTimeout } = config.pool
    let line: Line | undefined
    const connecting = Effect.async<Line, SqlError>((resume) => {
      const owner = {
        lost: (_: Connection, error: Error) => line?.fail(error),
        // also when it was given up here, because it did not answer: nobody may listen to silence
        closed: () => line?.fail(new Error("the listening connection was closed"))
      }
      const giveUp = openConnection(
        { server: config.writer, session: config.session, credentials, readOnly: false, timeout: connectTimeout },
        owner,
        (failure, connection) => {
          if (connection !== undefined) {
            line = new Line(connection, place, connectTimeout)
            resume(Effect.succeed(line))
          } else if (failure !== undefined) {
            const { error: cause, reason } = failure
            resume(Effect.fail(toSqlError(new ConnectFailed({ ...place, reason, cause }))))
          }
        }
      )
      return Effect.sync(giveUp)
    })
    // the finalizer is there before the connection is, so an interruption in between leaks nothing
    return Effect.zipRight(
      Effect.addFinalizer(() => Effect.sync(() => line?.connection.end("shutdown"))),
      connecting
    )
  })

/** The `listen` of a database's clients. */
export const makeListen = (
  config: DatabaseConfig,
  credentials: CredentialSource
): Effect.Effect<(channel: string) => Stream.Stream<string, SqlError>, never, Scope.Scope> =>
  Effect.map(RcRef.make({ acquire: open(config, credentials) }), (lines) => (channel) => {
    if (channel.includes("\0") || channel === "") {
      const cause = new Error("the name of a channel is empty or holds a NUL character")
      return Stream.fail(toSqlError(new QueryFailed({ database: config.name, server: "", cause })))
    }
    return Stream.asyncPush<string, SqlError>((emit) =>
      Effect.gen(function* () {
        const line = yield* RcRef.get(lines)
        // a line that was lost is of no use to the next listener
        if (line.connection.broken !== undefined) {
          return yield* toSqlError(
            new Disconnected({ database: config.name, server: config.writer.name, outcome: "notSent" })
          )
        }
        const message = (payload: string) => {
          emit.single(payload)
        }
        const fail = (error: SqlError) => {
          emit.fail(error)
        }
        yield* line.subscribe(channel, { message, fail })
      })
    )
  })
