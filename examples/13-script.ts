/** A script: open, do something, close, whatever happens in between. */
import { DatabaseRuntime } from "effect-db"
import { DatabasesLive, Db } from "./databases.js"
import { main } from "./main.js"

main(async (signal) => {
  // lazy: opened by the first statement, closed at the end of the block
  await using runtime = DatabaseRuntime.make({ db: Db }, DatabasesLive, { lazy: true })
  const { reader, writer } = runtime.databases.db

  // all of what is awaited in here is stored, or nothing; Ctrl-C ends it, and nothing is stored
  await runtime.unitOfWork(
    async () => {
      const todos = Array.from({ length: 1000 }, (_, i) => ({ title: `todo ${i}` }))
      await writer`INSERT INTO todo ${writer.insert(todos)}`
      await writer`UPDATE todo SET done = true WHERE ${writer.in("title", ["todo 7", "todo 8"])}`
    },
    { signal }
  )

  // rows as they come, however many there are
  let open = 0
  for await (const { done } of reader<{ done: boolean }>`SELECT done FROM todo`.stream()) if (!done) open++
  console.log(`open: ${open} of 1000`)
})
