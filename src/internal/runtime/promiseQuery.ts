/**
 * Statements for code that awaits them: written as ever, run when somebody waits for them, and parts of other statements until then.
 */
import * as Statement from "@effect/sql/Statement"
import * as Effect from "effect/Effect"
import { identity } from "effect/Function"
import type { Client } from "../../Copy.js"
import { json, makeCompiler } from "../client/compiler.js"
import { makePromiseCopy, type PromiseCopy } from "./promiseCopy.js"
import type { PromiseRunner } from "./promiseRunner.js"

/** What makes statements: a client, or what needs none. */
type Maker = Pick<Statement.Constructor, "unsafe"> &
  (<A extends object>(strings: TemplateStringsArray, ...values: Array<unknown>) => Statement.Statement<A>)

type Build<A> = (maker: Maker) => Statement.Statement<A>

/** The parts of statements need no database: a client is asked for when a statement runs. */
const parts = Statement.make(Effect.die(new Error("a part of a statement does not run")), makeCompiler(), [], undefined)

/** A statement that runs when it is awaited, once; or a part of another statement. */
export class PromiseQuery<A> implements PromiseLike<ReadonlyArray<A>>, Statement.Fragment {
  private promise: Promise<ReadonlyArray<A>> | undefined

  /** @internal */
  constructor(
    private readonly runner: PromiseRunner,
    private readonly build: Build<A>
  ) {}

  /** @internal The same statement, run elsewhere than where it is awaited. */
  through(place: <B>(code: () => B) => B): PromiseQuery<A> {
    const { build, runner } = this
    return new PromiseQuery(
      { run: (use) => place(() => runner.run(use)), stream: (use) => place(() => runner.stream(use)) },
      build
    )
  }

  get [Statement.FragmentId](): (_: never) => never {
    return identity
  }

  /** What it is as a part of another statement. */
  get segments(): ReadonlyArray<Statement.Segment> {
    return this.build(parts).segments
  }

  // a statement that nobody waits for does not run, so that it can be a part of another one
  // biome-ignore lint/suspicious/noThenProperty: to be awaited is what it is for
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

  /** The rows as arrays. */
  values(): Promise<ReadonlyArray<ReadonlyArray<unknown>>> {
    return this.runner.run((client) => this.build(client).values)
  }

  /** The rows as they come, a batch at a time; to end the loop early ends the statement. */
  stream(): AsyncIterable<A> {
    return this.runner.stream((client) => this.build(client).stream)
  }
}

type Parts = Pick<typeof parts, "insert" | "update" | "updateValues" | "in" | "and" | "or" | "csv" | "join" | "literal">

/** Makes statements, and their parts. */
export interface PromiseClient extends Parts, PromiseCopy {
  /** An identifier, quoted. */
  (name: string): Statement.Identifier
  /** A statement; its values are parameters. */
  <A extends object = Record<string, unknown>>(
    strings: TemplateStringsArray,
    ...values: ReadonlyArray<unknown>
  ): PromiseQuery<A>
  /** A statement from a text, with its parameters. */
  readonly query: <A extends object = Record<string, unknown>>(
    text: string,
    parameters?: ReadonlyArray<unknown> | undefined
  ) => PromiseQuery<A>
  /** A value as JSON. */
  readonly json: Client["json"]
}

/** A client whose statements are run by a runner. */
export const makePromiseClient = (runner: PromiseRunner): PromiseClient => {
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
    query: <A extends object>(text: string, parameters?: ReadonlyArray<unknown> | undefined) =>
      new PromiseQuery<A>(runner, (maker) => maker.unsafe<A>(text, parameters)),
    json,
    ...makePromiseCopy(runner)
  }
  // one function for a name and for a template, which an arrow cannot say with overloads
  return Object.assign(call, members) as unknown as PromiseClient
}
