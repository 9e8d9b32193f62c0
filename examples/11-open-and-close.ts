/** Databases that several parts of a program open and close: the calls are counted, and only the last `close` closes them. */
import { DatabaseRuntime } from "effect-db"
import { DatabasesLive, Db } from "./databases.js"
import { main } from "./main.js"

const runtime = DatabaseRuntime.make({ db: Db }, DatabasesLive)
const { db } = runtime.databases

const count = async (): Promise<string> => {
  try {
    const [row] = await db.writer<{ n: number }>`SELECT count(*)::int AS n FROM todo`
    return `${row?.n} stored`
  } catch (error) {
    // no type shows if the database is open; the error says so, and names the database
    return error instanceof Error ? error.message : String(error)
  }
}

/** Runs a part of a program, which may run alone, or beside other parts that use the same databases. */
const part = async (title: string): Promise<void> => {
  await runtime.open()
  try {
    await db.writer`INSERT INTO todo ${db.writer.insert({ title })}`
  } finally {
    await runtime.close()
  }
}

main(async () => {
  console.log(`before: ${await count()}`)

  await runtime.open()
  try {
    // the databases are open before and after each part
    await Promise.all([part("milk"), part("eggs"), part("bread")])
    console.log(`between: ${await count()}`)
  } finally {
    await runtime.close()
  }
  console.log(`after: ${await count()}`)
})
