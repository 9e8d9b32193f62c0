import { execFile } from "node:child_process"
import { promisify } from "node:util"
import { assert, it } from "@effect/vitest"
import * as Effect from "effect/Effect"
import * as Redacted from "effect/Redacted"
import { compiled } from "../support/compiledTree.js"
import { freshDatabase } from "../support/server.js"

/**
 * Runs a program that prints the growth of its heap since the end of its first rounds, in bytes.
 * Checks that the growth is less than 10 MB.
 */
const leavesTheHeap = (file: string) =>
  Effect.gen(function* () {
    const { writer } = yield* freshDatabase
    const { stdout } = yield* Effect.promise(() =>
      promisify(execFile)(process.execPath, ["--expose-gc", ...compiled(`test/support/${file}`)], {
        env: { ...process.env, DATABASE_URL: Redacted.value(writer) }
      })
    )
    const grown = Number(stdout.trim())
    assert.isFalse(Number.isNaN(grown), stdout)
    assert.isBelow(grown, 10 * 1024 * 1024)
    console.log(`${file}: the heap grew by ${Math.round(grown / 1024)} kB`)
  })

it.scopedLive(
  "100,000 small transactions let the heap grow by less than 10 MB after the first 10,000",
  () => leavesTheHeap("heap.ts"),
  180_000
)

it.scopedLive(
  "100 rounds of opened, closed, interrupted and refused work let the heap grow by less than 10 MB after the first 30",
  () => leavesTheHeap("churn.ts"),
  180_000
)
