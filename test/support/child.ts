/** A Node process that runs one of the programs beside this file. */
import { spawn } from "node:child_process"
import { createInterface } from "node:readline"
import { fileURLToPath } from "node:url"
import * as Deferred from "effect/Deferred"
import * as Effect from "effect/Effect"
import * as FiberId from "effect/FiberId"
import * as Redacted from "effect/Redacted"
import type * as Scope from "effect/Scope"
import { compiled } from "./compiledTree.js"

/** The end of a program, and its output. */
interface Ended {
  readonly code: number | NodeJS.Signals | null
  readonly lines: ReadonlyArray<string>
  readonly stderr: string
}

export interface Child {
  /** The first line that it prints; `undefined` if it ends without one. */
  readonly line: Effect.Effect<string | undefined>
  /** Writes an empty line to its standard input. */
  readonly tell: Effect.Effect<void>
  readonly signal: (name: NodeJS.Signals) => Effect.Effect<void>
  readonly ended: Effect.Effect<Ended>
}

/** Starts `support/<name>.ts` with the URL of a database; it is killed when the scope ends. */
export const startChild = (
  name: string,
  args: ReadonlyArray<string>,
  url: Redacted.Redacted<string>
): Effect.Effect<Child, never, Scope.Scope> =>
  Effect.map(
    Effect.acquireRelease(
      Effect.sync(() => {
        const child = spawn(process.execPath, [...compiled(`test/support/${name}.ts`), ...args], {
          cwd: fileURLToPath(new URL("../..", import.meta.url)),
          env: { PATH: process.env.PATH, DATABASE_URL: Redacted.value(url) },
          stdio: ["pipe", "pipe", "pipe"]
        })
        const ended = Deferred.unsafeMake<Ended>(FiberId.none)
        const first = Deferred.unsafeMake<string | undefined>(FiberId.none)
        const lines: Array<string> = []
        let stderr = ""
        createInterface({ input: child.stdout }).on("line", (line) => {
          lines.push(line)
          Deferred.unsafeDone(first, Effect.succeed(line))
        })
        child.stderr.setEncoding("utf8").on("data", (text: string) => {
          stderr += text
        })
        // the process may have ended already
        child.stdin.on("error", () => {})
        child.once("close", (code, signal) => {
          Deferred.unsafeDone(first, Effect.succeed(undefined))
          Deferred.unsafeDone(ended, Effect.succeed({ code: code ?? signal, lines, stderr }))
        })
        return { child, ended: Deferred.await(ended), line: Deferred.await(first) }
      }),
      ({ child, ended }) =>
        Effect.zipRight(
          Effect.sync(() => child.kill("SIGKILL")),
          ended
        )
    ),
    ({ child, ended, line }) => ({
      ended,
      line,
      tell: Effect.sync(() => void child.stdin.write("\n")),
      signal: (name) => Effect.sync(() => void child.kill(name))
    })
  )
