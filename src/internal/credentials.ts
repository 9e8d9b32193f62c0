/**
 * User and password of a server: fixed, or asked for anew for each physical connection, with generations.
 *
 * A generation begins when other credentials are given than before. What was asked for before that, and answers later, is of an older
 * one, whatever it says.
 */
import * as fs from "node:fs/promises"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Redacted from "effect/Redacted"
import * as Runtime from "effect/Runtime"
import type { Credentials, DatabaseConfig, ServerConfig } from "../DatabaseConfig.js"

/** Credentials and their generation. */
export interface Login extends Credentials {
  readonly generation: number
}

/** Called once, unless it was given up. */
export type OnLogin = (login: Login | undefined, cause: unknown) => void

const isSame = (a: Credentials, b: Credentials): boolean =>
  a.username === b.username &&
  (a.password === undefined ? undefined : Redacted.value(a.password)) ===
    (b.password === undefined ? undefined : Redacted.value(b.password))

const nothing = () => {}

export class CredentialSource {
  /** The generation in force. */
  generation = 0
  private readonly followers = new Set<(generation: number) => void>()
  private current: Credentials | undefined
  private asked = 0
  /** The question whose answer began the generation in force. */
  private begunBy = 0

  constructor(
    private readonly source: Credentials | Effect.Effect<Credentials, unknown>,
    private readonly runtime: Runtime.Runtime<never>
  ) {}

  /** Whether another question may have another answer. */
  get isAsked(): boolean {
    return Effect.isEffect(this.source)
  }

  /** Hears of each new generation. */
  follow(follower: (generation: number) => void): void {
    this.followers.add(follower)
  }

  /** Asks; the returned function gives up. */
  ask(done: OnLogin): () => void {
    const { source } = this
    if (!Effect.isEffect(source)) {
      done({ ...source, generation: 0 }, undefined)
      return nothing
    }
    const question = ++this.asked
    let isOver = false
    const fiber = Runtime.runFork(this.runtime)(source)
    fiber.addObserver((exit) => {
      if (isOver) return
      isOver = true
      if (Exit.isFailure(exit)) done(undefined, exit.cause)
      else done(this.take(question, exit.value), undefined)
    })
    return () => {
      if (isOver) return
      isOver = true
      fiber.unsafeInterruptAsFork(fiber.id())
    }
  }

  private take(question: number, { password, username }: Credentials): Login {
    const given = { username, password }
    if (this.current === undefined || !isSame(this.current, given)) {
      if (question < this.begunBy) return { ...given, generation: this.generation - 1 }
      const isFirst = this.current === undefined
      this.begunBy = question
      this.current = given
      if (!isFirst) {
        this.generation++
        for (const follower of this.followers) follower(this.generation)
      }
    }
    return { ...given, generation: this.generation }
  }
}

/** The password that a file holds, without the end of its line. */
const fromFile = (username: string, file: string): Effect.Effect<Credentials, unknown> =>
  Effect.flatMap(
    Effect.tryPromise((signal) => fs.readFile(file, { encoding: "utf8", signal })),
    (text) => {
      const password = text.replace(/\r?\n$/, "")
      return password === ""
        ? Effect.fail(new Error(`the password file ${file} is empty`))
        : Effect.succeed({ username, password: Redacted.make(password) })
    }
  )

/** Where the credentials of a server come from. */
export const makeCredentialSource = (
  config: DatabaseConfig,
  { password, passwordFile, username }: ServerConfig,
  runtime: Runtime.Runtime<never>
): CredentialSource =>
  new CredentialSource(
    config.options.credentials ??
      (passwordFile === undefined ? { username, password } : fromFile(username, passwordFile)),
    runtime
  )
