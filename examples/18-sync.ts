/** Code that cannot await, such as a helper of a template or an old library: it is blocked while another thread uses the database. */
import { DatabaseError } from "effect-db"
import { connect } from "./sync/connect.js"
import { main } from "./sync/main.js"
import type { Functions } from "./sync/todos.js"

const databases = connect<Functions>(new URL("./sync/todos.ts", import.meta.url))

// plain functions that return values, not promises
const add = (title: string): void => void databases.call("add", title)
const titles = (): string => {
  const todos = databases.call("list")
  return todos.map(({ title }) => title).join(", ")
}

main(() => {
  // opened once for all calls, and closed at the end of the block
  using _ = databases.open()
  add("milk")
  console.log(`stored: ${titles()}`)

  // several calls that are stored together, or not at all
  try {
    databases.unitOfWork(() => {
      add("eggs")
      console.log(`within: ${titles()}`)
      add("milk")
    })
  } catch (error) {
    // an error of the other thread has its class here, too
    if (!DatabaseError.isDatabaseError(error)) throw error
    console.log(`failed (${error._tag}): ${titles()}`)
  }

  // a part of a program that may run alone, or, as here, inside of another unit of work
  const part = () => {
    using _ = databases.open()
    databases.unitOfWork(() => add("bread"))
  }
  databases.unitOfWork(part)
  console.log(`nested: ${titles()}`)
})
