/** A script that opens databases, works, and closes them, even after a failure. */
import { DatabaseRuntime } from "effect-db"
import { DatabasesLive, Db } from "./databases.js"
import { main } from "./main.js"

main(async (signal) => {
  // lazy: the first statement opens the databases; the end of the block closes them
  await using runtime = DatabaseRuntime.make({ db: Db }, DatabasesLive, { lazy: true })
  const { reader, writer } = runtime.databases.db

  // all statements in the unit are stored, or none; after Ctrl-C none is stored
  await runtime.unitOfWork(
    async () => {
      const todos = Array.from({ length: 1000 }, (_, i) => ({ title: `todo ${i}` }))
      await writer`INSERT INTO todo ${writer.insert(todos)}`
      await writer`UPDATE todo SET done = true WHERE ${writer.in("title", ["todo 7", "todo 8"])}`
    },
    { signal }
  )

  // the rows are read in batches, so their number does not matter
  let open = 0
  for await (const { done } of reader<{ done: boolean }>`SELECT done FROM todo`.stream()) if (!done) open++
  console.log(`open: ${open} of 1000`)
})
