/** A shell with open databases: `await db.writer\`SELECT now()\`` at its prompt. Ctrl-D, or `.exit`, closes the databases. */
import { once } from "node:events"
import { start } from "node:repl"
import { DatabaseRuntime } from "effect-db"
import { Audit, DatabasesLive, Db } from "./databases.js"
import { main } from "./main.js"

main(async (signal) => {
  const ending = new AbortController()
  await using runtime = DatabaseRuntime.make({ db: Db, audit: Audit }, DatabasesLive)
  await runtime.open()
  if (signal.aborted) return

  const names = Object.keys(runtime.databases).join(", ")
  console.log(`connected: ${names}; several statements as one: await unitOfWork(async () => { ... })`)
  const { isTTY } = process.stdin
  // Ctrl-C interrupts the running line
  const shell = start({ prompt: isTTY ? "> " : "", breakEvalOnSigint: isTTY })
  const unitOfWork = <A>(code: () => Promise<A>) => runtime.unitOfWork(code, { signal: ending.signal })
  Object.assign(shell.context, runtime.databases, { unitOfWork })
  await Promise.race([once(shell, "exit"), once(signal, "abort")])
  // open units of work are rolled back, and no further line is read
  ending.abort()
  process.stdin.destroy()
})
