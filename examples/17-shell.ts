/** A shell with the databases connected: `await db.writer\`SELECT now()\`` at its prompt. Ctrl-D, or `.exit`, closes them. */
import { once } from "node:events"
import { start } from "node:repl"
import { DatabaseRuntime } from "effect-db"
import { Audit, DatabasesLive, Db } from "./databases.js"
import { main } from "./main.js"

main(async (signal) => {
  await using runtime = DatabaseRuntime.make({ db: Db, audit: Audit }, DatabasesLive)
  await runtime.open()

  const names = Object.keys(runtime.databases).join(", ")
  console.log(`connected: ${names}; several statements as one: await unitOfWork(async () => { ... })`)
  const shell = start({ prompt: process.stdin.isTTY ? "> " : "" })
  Object.assign(shell.context, runtime.databases, { unitOfWork: runtime.unitOfWork })
  signal.addEventListener("abort", () => shell.close())
  await once(shell, "exit")
})
