/**
 * A part of `npm run simulate`: a fixed seed, a fresh one, and the replay of a seed.
 */
import { execFile } from "node:child_process"
import { describe, expect, it } from "vitest"
import { compiledFile } from "../support/compiledTree.js"

/** The seed of the fixed episodes. */
const fixedSeed = 20_260_101

/** The time of one test, in ms; on a free machine each takes some seconds. */
const timeout = 110_000

interface Run {
  readonly code: number | undefined
  readonly output: string
}

/** Runs the simulation in a process of its own. */
const simulate = (...args: ReadonlyArray<string>): Promise<Run> =>
  new Promise((resolve) => {
    const program = compiledFile("test/simulation/main.ts")
    execFile(process.execPath, [program, ...args], { maxBuffer: 2 ** 26 }, (error, stdout, stderr) =>
      resolve({ code: error === null ? 0 : Number(error.code), output: stdout + stderr })
    )
  })

const expectSuccess = ({ code, output }: Run): void => expect(code, output).toBe(0)

describe("the simulation", () => {
  it("finds no violated invariant in the episodes of a fixed seed", { timeout }, async () => {
    expectSuccess(await simulate("--seed", String(fixedSeed), "--hours", "6", "--workers", "2"))
  })

  it("finds no violated invariant in the episodes of a fresh seed", { timeout }, async () => {
    const seed = String(Date.now() % 1_000_000_000)
    console.log(`simulation: fresh seed ${seed}`)
    expectSuccess(await simulate("--seed", seed, "--hours", "6", "--workers", "2"))
  })

  it("gives the same trace for the same seed, in one process and in another", { timeout }, async () => {
    expectSuccess(await simulate("--seed", String(fixedSeed), "--hours", "2", "--workers", "1", "--twice"))
    const replays = await Promise.all([1, 2].map(() => simulate("--seed", String(fixedSeed), "--episode", "1")))
    const [first, second] = replays.map(({ output }) => /^trace [0-9a-f]{16}, \d+ steps, \d+ calls$/m.exec(output)?.[0])
    expect(first).toBeDefined()
    expect(second).toBe(first)
  })

  it("traces differ between two seeds", { timeout }, async () => {
    const [one, other] = await Promise.all(["1", "2"].map((seed) => simulate("--seed", seed, "--episode", "0")))
    expect(one?.output).toContain("trace ")
    expect(other?.output).not.toBe(one?.output)
  })

  it.each([
    [["--seed", "x"], "--seed is a whole number from 0"],
    [["--hours", "0"], "--hours is a number from 0.1"],
    [["--until", "5"], "need --episode"],
    [["--episode", "5"], "--episode needs --seed"],
    [["--seed", "1", "--episode", "0", "--calls", "7"], "--calls is FIRST-LAST"],
    [["--only", "stale-writer"], "--only needs --planted"],
    [["--planted", "--only", "none"], "there is no fault none"],
    [["--speed", "9"], "Unknown option '--speed'"]
  ])("refuses %j with a reason and the usage", async (args, reason) => {
    const { code, output } = await simulate(...args)
    expect(code, output).toBe(2)
    expect(output).toContain(reason)
    expect(output).toContain("npm run simulate -- [options]")
  })

  it("prints its usage", async () => {
    const { code, output } = await simulate("--help")
    expect(code).toBe(0)
    expect(output).toContain("--seed N")
  })
})
