/**
 * A named database for code that awaits: its clients, transactions and hooks as promises.
 */
import { SqlError } from "@effect/sql/SqlError"
import * as Effect from "effect/Effect"
import * as Stream from "effect/Stream"
import type { Consistency } from "../../Consistency.js"
import type { Client } from "../../Copy.js"
import type * as Database from "../../Database.js"
import { fromUnknown, refine } from "../../DatabaseError.js"
import type { Options } from "../../Transaction.js"
import type { Named } from "../../UnitOfWork.js"
import { schemaChange } from "../sql/schemaScopes.js"
import { inPlainScopes, runPlain } from "./asyncContext.js"
import { makePromiseClient, type PromiseClient } from "./promiseQuery.js"

/** Runs effects on open databases. */
export interface RunEffect<R> {
  readonly promise: <A, E>(self: Effect.Effect<A, E, R>) => Promise<A>
  readonly iterable: <A, E>(self: Stream.Stream<A, E, R>) => AsyncIterable<A>
}

/** A hook or a part of the work: plain code. */
type Code<A> = () => PromiseLike<A> | A

/** A named database, as promises. They reject with a `DatabaseError`, or with what the code inside has thrown. */
export interface PromiseDatabase {
  /** The client of the primary. */
  readonly writer: PromiseClient
  /** The client of a replica, or of the primary, read-only. */
  readonly reader: PromiseClient
  /** For reads in what is open already, else as `reader`. */
  readonly any: PromiseClient
  /** Runs plain code in a transaction. */
  readonly withTransaction: <A>(code: Code<A>, options?: Options) => Promise<A>
  /** What reads must see, for plain code. */
  readonly withConsistency: <A>(consistency: Consistency, code: Code<A>) => Promise<A>
  /**
   * Where the unqualified names of this database's statements are looked up, for plain code and all that it calls: one schema, or several.
   * A tenant's schema, by `withTenant` of the runtime, is before it.
   */
  readonly withSchema: <A>(schema: string | ReadonlyArray<string>, code: () => A) => A
  /** Runs plain code outside of every transaction of this database. */
  readonly independent: <A>(code: Code<A>) => Promise<A>
  /** Before COMMIT, inside of the transaction; what it throws rolls it back. */
  readonly beforeCommit: (hook: Code<unknown>) => Promise<void>
  /** After COMMIT, outside of the transaction. */
  readonly afterCommit: (hook: Code<unknown>) => Promise<void>
  /** After a rollback, outside of the transaction. */
  readonly afterRollback: (hook: Code<unknown>) => Promise<void>
  /** After a COMMIT whose answer did not come, outside of the transaction. */
  readonly afterUnknown: (hook: Code<unknown>) => Promise<void>
  /** Commits what the unit of work has done so far on this database. */
  readonly commit: () => Promise<void>
  /** Rolls back what the unit of work has done so far on this database. */
  readonly rollback: () => Promise<void>
  /** Sends a message; inside of a transaction on its COMMIT. */
  readonly notify: (channel: string, payload?: string) => Promise<void>
  /** The figures of this moment. */
  readonly status: () => Promise<Database.Status>
}

/** What it takes: the class of a database, but for how it is opened. */
export type DatabaseTag<Self> = Omit<Database.Members<Self>, "layer" | "layerConfig" | "layerEnv">

/** The access to one database. */
export const makePromiseDatabase = <Self>(tag: Named & DatabaseTag<Self>, run: RunEffect<Self>): PromiseDatabase => {
  const client = (kind: "writer" | "reader" | "any"): PromiseClient =>
    makePromiseClient({
      run: <A, E>(use: (client: Client) => Effect.Effect<A, E>) => run.promise(refine(Effect.flatMap(tag[kind], use))),
      stream: <A, E>(use: (client: Client) => Stream.Stream<A, E>) =>
        run.iterable(
          Stream.mapError(Stream.unwrap(Effect.map(tag[kind], use)), (error) =>
            error instanceof SqlError ? fromUnknown(error) : error
          )
        )
    })
  return {
    writer: client("writer"),
    reader: client("reader"),
    any: client("any"),
    withTransaction: (code, options) => run.promise(tag.withTransaction(runPlain(code), options)),
    withConsistency: (consistency, code) => run.promise(tag.withConsistency(runPlain(code), consistency)),
    withSchema: (schema, code) => inPlainScopes(schemaChange(tag.databaseName, schema), code),
    independent: (code) => run.promise(tag.independent(runPlain(code))),
    beforeCommit: (hook) => run.promise(tag.beforeCommit(runPlain(hook))),
    afterCommit: (hook) => run.promise(tag.afterCommit(runPlain(hook))),
    afterRollback: (hook) => run.promise(tag.afterRollback(runPlain(hook))),
    afterUnknown: (hook) => run.promise(tag.afterUnknown(runPlain(hook))),
    commit: () => run.promise(tag.commit),
    rollback: () => run.promise(tag.rollback),
    notify: (channel, payload) => run.promise(tag.notify(channel, payload)),
    status: () => run.promise(tag.status)
  }
}
