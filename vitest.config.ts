import { availableParallelism } from "node:os"
import { defineConfig } from "vitest/config"
import { compiledSources } from "./test/support/compiledSources.js"
import { compileTree } from "./test/support/compiledTree.js"
import { fastTests } from "./test/support/tier.js"

// the fast tier starts no server
const isFast = process.env.EFFECT_DB_TEST_TIER === "unit"

await compileTree()

export default defineConfig({
  plugins: [compiledSources()],
  test: {
    include: isFast ? fastTests() : ["test/**/*.test.ts", "examples/*.test.ts"],
    globalSetup: isFast ? [] : ["test/support/globalSetup.ts"],
    // a program takes seconds to start, on a busy machine tens of them, and some tests start three
    testTimeout: 120_000,
    hookTimeout: 120_000,
    pool: "forks",
    // most of the time tests wait for servers, so two at a time do no harm on two cores
    maxWorkers: Math.max(2, availableParallelism() - 1),
    // the examples are programs, and each needs a processor to start
    maxConcurrency: 2
  }
})
