/** How a program that blocks is run. */
import { explain } from "../main.js"
import { Interrupted } from "./start.js"

/** What fails is one line. It listens to no signal, for it could not be told of one: Ctrl-C breaks off what it waits for, or ends it. */
export const main = (program: () => void): void => {
  try {
    program()
  } catch (error) {
    const interrupted = error instanceof Interrupted
    process.exitCode = interrupted ? 130 : 1
    if (!interrupted) console.error(`error: ${explain(error)}`)
  }
}
