/** Opened and closed by hand, in several places: it is counted, and only the last one closes. */
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
    // types cannot tell whether it is open; the error can, and names the database
    return error instanceof Error ? error.message : String(error)
  }
}

/** A part of a program that may run on its own, or with others that need the same. */
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
    // they find it open, and leave it open
    await Promise.all([part("milk"), part("eggs"), part("bread")])
    console.log(`between: ${await count()}`)
  } finally {
    await runtime.close()
  }
  console.log(`after: ${await count()}`)
})
