/**
 * User and password of a server: fixed, or asked for anew for each physical connection, with generations.
 *
 * A generation begins when other credentials are given than before. Answers may overtake each other: what says otherwise than the answer
 * to a later question is of an older generation.
 */
import { TransactionConnection } from "@effect/sql/SqlClient"
import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import type * as Fiber from "effect/Fiber"
import * as Redacted from "effect/Redacted"
import * as Runtime from "effect/Runtime"
import type { Credentials, DatabaseConfig, ServerConfig } from "../../DatabaseConfig.js"
import { readTextFile } from "./textFile.js"

/** Credentials and their generation. */
export interface Login extends Credentials {
  readonly generation: number
}

/** Called once, unless it was given up. */
export type OnLogin = (login: Login | undefined, cause: unknown) => void

const passwordOf = ({ password }: Credentials): string | undefined =>
  password === undefined ? undefined : Redacted.value(password)

const isSame = (a: Credentials, b: Credentials): boolean =>
  a.version !== undefined && b.version !== undefined
    ? a.version === b.version
    : a.username === b.username && passwordOf(a) === passwordOf(b)

/** What a program gives may be another thing than its types say, such as what was read from somewhere as JSON. */
const checked = (given: Credentials): Credentials => {
  if (typeof given?.username !== "string" || given.username === "") throw new Error("no user was given")
  const password: unknown = passwordOf(given)
  if (password !== undefined && typeof password !== "string") throw new Error("the password is no text")
  // in a message of the protocol it would end the text, and what follows would be the next parameter
  if (`${given.username}${password ?? ""}`.includes("\0")) throw new Error("user or password holds a NUL character")
  return given
}

export class CredentialSource {
  /** The generation in force. */
  generation = 0
  private readonly followers = new Set<(generation: number) => void>()
  private current: Credentials | undefined
  private asked = 0
  /** The last question that was answered. */
  private answered = 0
  private readonly fork: <A, E>(effect: Effect.Effect<A, E>) => Fiber.RuntimeFiber<A, E>

  constructor(
    private readonly source: Effect.Effect<Credentials, unknown>,
    /** Whether another question may have another answer. */
    readonly isAsked: boolean,
    runtime: Runtime.Runtime<never>
  ) {
    // a database may be opened inside of a transaction of another; a provider that uses that one has nothing to do with it
    this.fork = Runtime.runFork(Runtime.updateContext(runtime, Context.omit(TransactionConnection)))
  }

  /** Hears of each new generation, until the returned function is called. */
  follow(follower: (generation: number) => void): () => void {
    this.followers.add(follower)
    return () => {
      this.followers.delete(follower)
    }
  }

  /** Asks; the returned function gives up. */
  ask(done: OnLogin): () => void {
    const question = ++this.asked
    return this.run(
      Effect.map(this.source, (given) => this.take(question, checked(given))),
      done
    )
  }

  /** Runs an effect that the program gave; `done` is called once, unless the returned function gives it up before. */
  run<A, E>(effect: Effect.Effect<A, E>, done: (value: A | undefined, cause: unknown) => void): () => void {
    let isOver = false
    // a fiber that fails says so in the program's debug log, in the program's own words
    const fiber = this.fork(Effect.exit(Effect.interruptible(effect)))
    fiber.addObserver((ended) => {
      if (isOver) return
      isOver = true
      const exit = Exit.flatten(ended)
      if (Exit.isSuccess(exit)) done(exit.value, undefined)
      else done(undefined, exit.cause)
    })
    return () => {
      if (isOver) return
      isOver = true
      fiber.unsafeInterruptAsFork(fiber.id())
    }
  }

  private take(question: number, { password, username, version }: Credentials): Login {
    const given = { username, password, version }
    const isOther = this.current !== undefined && !isSame(this.current, given)
    if (isOther && question < this.answered) return { ...given, generation: this.generation - 1 }
    this.answered = Math.max(this.answered, question)
    this.current = given
    if (isOther) {
      this.generation++
      for (const follower of this.followers) follower(this.generation)
    }
    return { ...given, generation: this.generation }
  }
}

/** Why a file gave no password; unlike what a provider of the program says, it holds nothing secret. */
export class PasswordFileError extends Error {
  constructor(
    file: string,
    why: string,
    /** Why it could not be read. */
    override readonly cause?: unknown
  ) {
    super(`the password file ${file} cannot be used: ${why}`)
  }
}

/** No password is longer, so a file that is cannot be meant. */
const longestFile = 65_536

const readPassword = async (file: string): Promise<string> => {
  const { text } = await readTextFile(file, longestFile)
  const password = text.replace(/\r?\n$/, "")
  if (password === "") throw new Error("it is empty")
  return password
}

/** The password that a file holds, without the end of its line. */
const fromFile = (username: string, file: string): Effect.Effect<Credentials, PasswordFileError> =>
  Effect.map(
    Effect.tryPromise({
      try: () => readPassword(file),
      catch: (cause) => {
        const why = cause instanceof Error ? cause.message : String(cause)
        return new PasswordFileError(file, why, cause)
      }
    }),
    (password) => ({ username, password: Redacted.make(password) })
  )

/** Where the credentials of a server come from. */
export const makeCredentialSource = (
  config: DatabaseConfig,
  { password, passwordFile, username }: ServerConfig,
  runtime: Runtime.Runtime<never>
): CredentialSource => {
  const { credentials } = config.options
  if (credentials !== undefined) return new CredentialSource(credentials, true, runtime)
  return passwordFile === undefined
    ? new CredentialSource(Effect.succeed({ username, password }), false, runtime)
    : new CredentialSource(fromFile(username, passwordFile), true, runtime)
}
