/**
 * A named database for code with promises: its clients, transactions and hooks.
 */
import { SqlError } from "@effect/sql/SqlError"
import * as Effect from "effect/Effect"
import * as Stream from "effect/Stream"
import type { Consistency } from "../../Consistency.js"
import type { Client } from "../../Copy.js"
import type * as Database from "../../Database.js"
import { fromUnknown, refine } from "../../DatabaseError.js"
import type { Schema } from "../../Tenant.js"
import type { Options } from "../../Transaction.js"
import type { Named } from "../../UnitOfWork.js"
import { schemaChange } from "../sql/schemaScopes.js"
import { inPlainScopes, runPlain } from "./asyncContext.js"
import { makePromiseClient } from "./promiseQuery.js"

/** Runner of effects and streams on open databases. */
export interface RunEffect<R> {
  readonly promise: <A, E>(self: Effect.Effect<A, E, R>) => Promise<A>
  readonly iterable: <A, E>(self: Stream.Stream<A, E, R>) => AsyncIterable<A>
}

/** Plain code: a hook, or a part of the work. */
type Code<A> = () => PromiseLike<A> | A

/** The members of the class of a database, except those that open it. */
export type DatabaseTag<Self> = Omit<Database.Members<Self>, "layer" | "layerConfig" | "layerEnv">

/** Makes the members of a database for promises. They run effects of the database with a runner. */
export const makePromiseDatabase = <Self>(tag: Named & DatabaseTag<Self>, run: RunEffect<Self>) => {
  const client = (kind: "writer" | "reader" | "any") =>
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
    withTransaction: <A>(code: Code<A>, options?: Options) => run.promise(tag.withTransaction(runPlain(code), options)),
    withConsistency: <A>(code: Code<A>, consistency: Consistency) =>
      run.promise(tag.withConsistency(runPlain(code), consistency)),
    withSchema: <A>(code: () => A, schema: Schema): A => inPlainScopes(schemaChange(tag.databaseName, schema), code),
    independent: <A>(code: Code<A>) => run.promise(tag.independent(runPlain(code))),
    beforeCommit: (hook: Code<unknown>) => run.promise(tag.beforeCommit(runPlain(hook))),
    afterCommit: (hook: Code<unknown>) => run.promise(tag.afterCommit(runPlain(hook))),
    afterRollback: (hook: Code<unknown>) => run.promise(tag.afterRollback(runPlain(hook))),
    afterUnknown: (hook: Code<unknown>) => run.promise(tag.afterUnknown(runPlain(hook))),
    commit: () => run.promise(tag.commit),
    rollback: () => run.promise(tag.rollback),
    notify: (channel: string, payload?: string) => run.promise(tag.notify(channel, payload)),
    status: () => run.promise(tag.status)
  }
}
