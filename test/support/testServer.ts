/**
 * A program with the global setup of a run of tests: on an embedded server, or, with `given`, on the
 * server of `DATABASE_URL`. It prints what the workers of the run inherit, and runs until it is
 * killed.
 */
import { TestDatabase } from "effect-db"

const url = process.argv[2] === "given" ? process.env.DATABASE_URL : undefined

await TestDatabase.serverSetup({ url, databases: ["app"] })()
console.log(process.env.EFFECT_DB_TEST_SERVER)
process.stdin.resume()
