/** The file that the thread with the databases runs. It has the functions that code which cannot await calls in that thread. */
import { DatabaseRuntime } from "effect-db"
import { DatabasesLive, Db } from "../databases.js"
import * as Todos from "../todos.js"
import { answer } from "./answer.js"

const runtime = DatabaseRuntime.make({ db: Db }, DatabasesLive)

const functions = {
  add: (title: string) => runtime.runPromise(Todos.add({ title, done: false })),
  list: () => runtime.runPromise(Todos.list)
}

export type Functions = typeof functions

answer(runtime, functions)
