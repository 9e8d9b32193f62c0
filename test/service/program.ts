import { spawn } from "node:child_process"
import { fileURLToPath } from "node:url"
import * as Data from "effect/Data"
import * as Deferred from "effect/Deferred"
import * as Effect from "effect/Effect"
import * as FiberId from "effect/FiberId"
import * as Redacted from "effect/Redacted"
import { compiled } from "../support/compiledTree.js"
import { freshDatabase } from "../support/server.js"

const root = fileURLToPath(new URL("../../", import.meta.url))

/** A program that has ended too early, with its output, or its stderr alone, in the message. */
export class Unexpected extends Data.TaggedError("Unexpected")<{ readonly message: string }> {}

export interface Ended {
  readonly code: number | NodeJS.Signals | null
  readonly stdout: string
  readonly stderr: string
}

/**
 * Starts a program of the examples, as a user does. If it still runs when the scope closes, it is
 * killed.
 */
export const startScript = (script: string, args: ReadonlyArray<string>, env: Readonly<Record<string, string>> = {}) =>
  Effect.acquireRelease(
    Effect.sync(() => {
      const child = spawn(process.execPath, [...compiled(script), ...args], {
        cwd: root,
        env: { PATH: process.env.PATH, PORT: "0", ...env },
        stdio: ["pipe", "pipe", "pipe"]
      })
      const ended = Deferred.unsafeMake<Ended>(FiberId.none)
      const waiting = new Set<() => void>()
      const written = { stdout: "", stderr: "" }
      for (const name of ["stdout", "stderr"] as const) {
        child[name].setEncoding("utf8").on("data", (text: string) => {
          written[name] += text
          for (const look of waiting) look()
        })
      }
      // a write after the end of the program fails, which a test need not handle
      child.stdin.on("error", () => {})
      child.once("close", (code, signal) => {
        Deferred.unsafeDone(ended, Effect.succeed({ code: code ?? signal, ...written }))
        for (const look of waiting) look()
      })

      const hasEnded = () => child.exitCode !== null || child.signalCode !== null
      /**
       * Waits until the output of the program matches, and returns the first group of the match, or
       * the whole match if it has none. Fails if the program ends without a match.
       */
      const line = (pattern: RegExp): Effect.Effect<string, Unexpected> =>
        Effect.async((resume) => {
          const look = () => {
            const found = pattern.exec(written.stdout) ?? pattern.exec(written.stderr)
            if (found !== null) resume(Effect.succeed(found[1] ?? found[0]))
            else if (hasEnded()) {
              const message = `ended without ${pattern}:\n${written.stdout}\n${written.stderr}`
              resume(new Unexpected({ message }))
            } else return
            waiting.delete(look)
          }
          waiting.add(look)
          look()
          return Effect.sync(() => waiting.delete(look))
        })
      return {
        pid: child.pid ?? 0,
        line,
        written: Effect.sync(() => written.stdout + written.stderr),
        url: line(/service +(http:\S+)/),
        /** Waits for an effect. Fails if the program ends first. */
        meanwhile: <A, E>(self: Effect.Effect<A, E>): Effect.Effect<A, E | Unexpected> =>
          Effect.raceFirst(
            self,
            Effect.flatMap(Deferred.await(ended), ({ code, stderr }) =>
              Effect.fail(new Unexpected({ message: `ended too early with ${code}: ${stderr}` }))
            )
          ),
        /** Writes a text to the input of the program. */
        type: (text: string) => Effect.sync(() => void child.stdin.write(text)),
        /** Ends the input as Ctrl-D does. */
        leave: Effect.sync(() => void child.stdin.end()),
        signal: (name: NodeJS.Signals) => Effect.sync(() => child.kill(name)),
        ended: Deferred.await(ended)
      }
    }),
    ({ ended, signal }) => Effect.zipRight(signal("SIGKILL"), ended)
  )

/** Starts the example service. */
export const start = (args: ReadonlyArray<string>, env: Readonly<Record<string, string>> = {}) =>
  startScript("examples/service/main.ts", args, env)

/** Runs the example service until it ends. */
export const run = (args: ReadonlyArray<string>, env: Readonly<Record<string, string>> = {}) =>
  Effect.scoped(Effect.flatMap(start(args, env), ({ ended }) => ended))

/**
 * Creates two empty databases on the shared server, the first with a replica. `env` has their URLs
 * as settings of the example service.
 */
export const databases = Effect.gen(function* () {
  const app = yield* freshDatabase
  const audit = yield* freshDatabase
  const env = {
    DATABASE_URL: Redacted.value(app.writer),
    DATABASE_READER_URLS: Redacted.value(app.reader),
    AUDIT_DATABASE_URL: Redacted.value(audit.writer)
  }
  return { app: app.writer, replica: app.reader, audit: audit.writer, env }
})
