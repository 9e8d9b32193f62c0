/**
 * Statements for code with promises. A statement runs when it is awaited, and can be a part of
 * another statement.
 */
import * as Statement from "@effect/sql/Statement"
import * as Effect from "effect/Effect"
import { identity } from "effect/Function"
import { json, makeCompiler } from "../client/compiler.js"
import { atCallSite, callSite } from "../observability/callSite.js"
import { makePromiseCopy } from "./promiseCopy.js"
import type { PromiseRunner } from "./promiseRunner.js"

/** Constructor of statements: a client, or `parts`. */
type Maker = Pick<Statement.Constructor, "unsafe"> &
  (<A extends object>(strings: TemplateStringsArray, ...values: Array<unknown>) => Statement.Statement<A>)

type Build<A> = (maker: Maker) => Statement.Statement<A>

/** Constructor of the parts of statements, which need no database. */
const parts = Statement.make(Effect.die(new Error("a part of a statement does not run")), makeCompiler(), [], undefined)

/** Statement that runs at its first `await`, or that is a part of another statement. */
export class PromiseQuery<A> implements PromiseLike<ReadonlyArray<A>>, Statement.Fragment {
  private promise: Promise<ReadonlyArray<A>> | undefined
  private readonly build: Build<A>

  constructor(
    private readonly runner: PromiseRunner,
    build: Build<A>
  ) {
    const site = callSite()
    this.build = site === undefined ? build : (maker) => atCallSite(site, () => build(maker))
  }

  /** Returns a copy of the statement that runs in the context of `run`, not of the `await`. */
  through(run: <B>(code: () => B) => B): PromiseQuery<A> {
    const { build, runner } = this
    return new PromiseQuery(
      { run: (use) => run(() => runner.run(use)), stream: (use) => run(() => runner.stream(use)) },
      build
    )
  }

  get [Statement.FragmentId](): (_: never) => never {
    return identity
  }

  get segments(): ReadonlyArray<Statement.Segment> {
    return this.build(parts).segments
  }

  // the statement runs here and not earlier, so that it can be a part of another statement
  // biome-ignore lint/suspicious/noThenProperty: a query is made to be awaited
  then<B = ReadonlyArray<A>, C = never>(
    onRows?: ((rows: ReadonlyArray<A>) => B | PromiseLike<B>) | null | undefined,
    onFailure?: ((error: unknown) => C | PromiseLike<C>) | null | undefined
  ): Promise<B | C> {
    this.promise ??= this.runner.run(this.build)
    return this.promise.then(onRows, onFailure)
  }

  catch<C = never>(
    onFailure?: ((error: unknown) => C | PromiseLike<C>) | null | undefined
  ): Promise<ReadonlyArray<A> | C> {
    return this.then(undefined, onFailure)
  }

  finally(onEnd?: (() => void) | null | undefined): Promise<ReadonlyArray<A>> {
    return this.then().finally(onEnd)
  }

  values(): Promise<ReadonlyArray<ReadonlyArray<unknown>>> {
    return this.runner.run((client) => this.build(client).values)
  }

  stream(): AsyncIterable<A> {
    return this.runner.stream((client) => this.build(client).stream)
  }
}

/** Signatures of a client as a function: a name is an identifier, a template a statement. */
type Call = {
  (name: string): Statement.Identifier
  <A extends object = Record<string, unknown>>(
    strings: TemplateStringsArray,
    ...values: ReadonlyArray<unknown>
  ): PromiseQuery<A>
}

/** Makes a client that runs its statements with a runner. */
export const makePromiseClient = (runner: PromiseRunner) => {
  const call = (strings: string | TemplateStringsArray, ...values: Array<unknown>) =>
    typeof strings === "string" ? parts(strings) : new PromiseQuery(runner, (maker) => maker(strings, ...values))
  const { and, csv, in: in_, insert, join, literal, or, update, updateValues } = parts
  const members = {
    insert,
    update,
    updateValues,
    in: in_,
    and,
    or,
    csv,
    join,
    literal,
    query: <A extends object = Record<string, unknown>>(
      text: string,
      parameters?: ReadonlyArray<unknown> | undefined
    ) => new PromiseQuery<A>(runner, (maker) => maker.unsafe<A>(text, parameters)),
    json,
    ...makePromiseCopy(runner)
  }
  // the cast: an arrow function cannot have overloads
  return Object.assign(call as unknown as Call, members)
}
