/** Code that cannot wait, as a template's helper or an old library: it is blocked, while a thread asks the database for it. */
import { DatabaseError } from "effect-db"
import { connect } from "./sync/connect.js"
import { main } from "./sync/main.js"
import type { Functions } from "./sync/todos.js"

const databases = connect<Functions>(new URL("./sync/todos.ts", import.meta.url))

// plain functions, which give what there is
const add = (title: string): void => void databases.call("add", title)
const titles = (): string => {
  const todos = databases.call("list")
  return todos.map(({ title }) => title).join(", ")
}

main(() => {
  // opened once; each call uses what is open, and the end of the block closes it
  using _ = databases.open()
  add("milk")
  console.log(`stored: ${titles()}`)

  // several calls, all or nothing
  try {
    databases.unitOfWork(() => {
      add("eggs")
      console.log(`within: ${titles()}`)
      add("milk")
    })
  } catch (error) {
    // it has come from the other thread as what it is
    if (!DatabaseError.isDatabaseError(error)) throw error
    console.log(`failed (${error._tag}): ${titles()}`)
  }

  // a part of a program that may run on its own, or, as here, in another
  const part = () => {
    using _ = databases.open()
    databases.unitOfWork(() => add("bread"))
  }
  databases.unitOfWork(part)
  console.log(`nested: ${titles()}`)
})
