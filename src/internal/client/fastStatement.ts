/**
 * The statements of the clients: those of @effect/sql, with a shorter code path.
 *
 * If a tracer or a statement transformer is set, a statement runs exactly as in @effect/sql.
 * Otherwise no span is created: without a tracer it would be invisible, and its creation takes a
 * third of the CPU time of a small statement.
 */
import type { SqlError } from "@effect/sql/SqlError"
import * as Statement from "@effect/sql/Statement"
import * as Effect from "effect/Effect"
import * as Effectable from "effect/Effectable"
import type * as Fiber from "effect/Fiber"
import { identity } from "effect/Function"
import * as Stream from "effect/Stream"
import { type CallSite, CurrentSite, callSite } from "../observability/callSite.js"
import { hasTracer } from "../observability/transactionSpan.js"
import { nameServer, nameStreamServer } from "./serverOfSpan.js"

/** Checks if spans are recorded, or statements are transformed. */
const isWatched = (fiber: Fiber.RuntimeFiber<unknown, unknown>): boolean =>
  hasTracer(fiber) || fiber.getFiberRef(Statement.currentTransformer)._tag === "Some"

/** Function that runs a compiled statement and returns its rows. */
export type Execute = (
  fiber: Fiber.RuntimeFiber<unknown, unknown>,
  sql: string,
  params: ReadonlyArray<unknown>,
  site: CallSite | undefined
) => Effect.Effect<ReadonlyArray<never>, SqlError>

class FastStatement<A> extends Effectable.Class<ReadonlyArray<A>, SqlError> implements Statement.Statement<A> {
  constructor(
    private readonly made: Statement.Statement<A>,
    private readonly execute: Execute,
    private readonly site: CallSite | undefined
  ) {
    super()
  }

  get [Statement.FragmentId]() {
    return identity
  }
  get segments(): ReadonlyArray<Statement.Segment> {
    return this.made.segments
  }
  get withoutTransform(): Effect.Effect<ReadonlyArray<A>, SqlError> {
    return this.at(this.made.withoutTransform)
  }
  get raw(): Effect.Effect<unknown, SqlError> {
    return this.at(this.made.raw)
  }
  get stream(): Stream.Stream<A, SqlError> {
    const { made, site } = this
    const stream = site === undefined ? made.stream : Stream.provideService(made.stream, CurrentSite, site)
    return Stream.unwrap(
      Effect.withFiberRuntime((fiber) => Effect.succeed(hasTracer(fiber) ? nameStreamServer(stream) : stream))
    )
  }
  get values(): Effect.Effect<ReadonlyArray<ReadonlyArray<unknown>>, SqlError> {
    return this.at(this.made.values)
  }
  get unprepared(): Effect.Effect<ReadonlyArray<A>, SqlError> {
    return this.at(this.made.unprepared)
  }
  compile(withoutTransform?: boolean | undefined): readonly [sql: string, params: ReadonlyArray<unknown>] {
    return this.made.compile(withoutTransform)
  }
  commit(): Effect.Effect<ReadonlyArray<A>, SqlError> {
    return Effect.withFiberRuntime((fiber) => {
      if (isWatched(fiber)) return this.at(this.made)
      const [sql, params] = this.made.compile()
      return this.execute(fiber, sql, params, this.site)
    })
  }
  /** Adds the call site to a statement that @effect/sql runs, and the server to its span. */
  private at<B>(effect: Effect.Effect<B, SqlError>): Effect.Effect<B, SqlError> {
    const { site } = this
    const written = site === undefined ? effect : Effect.provideService(effect, CurrentSite, site)
    return Effect.withFiberRuntime((fiber) => (hasTracer(fiber) ? nameServer(written) : written))
  }
  toJSON(): unknown {
    const [sql, params] = this.compile()
    return { _id: "effect-db/Statement", sql, params }
  }
}

/** Makes a constructor like that of @effect/sql, with statements that take the shorter path. */
export const makeStatementConstructor = (made: Statement.Constructor, execute: Execute): Statement.Constructor => {
  const sql = (strings: TemplateStringsArray | string, ...args: ReadonlyArray<never>) =>
    typeof strings === "string" ? made(strings) : new FastStatement(made(strings, ...args), execute, callSite())
  return Object.assign(
    // the cast: one function makes statements and identifiers, and an arrow function cannot have
    // overloads
    sql as unknown as {
      (value: string): Statement.Identifier
      <A extends object>(strings: TemplateStringsArray): Statement.Statement<A>
    },
    { ...made },
    {
      unsafe: <A extends object>(text: string, params?: ReadonlyArray<unknown> | undefined) =>
        new FastStatement(made.unsafe<A>(text, params), execute, callSite())
    }
  )
}
