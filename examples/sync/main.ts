/** Runs a program that blocks. */
import { explain } from "../main.js"
import { Interrupted } from "./start.js"

/** Prints a failure as one line. Listens to no signal, because a blocked thread receives none: Ctrl-C ends the call in progress, or the program. */
export const main = (program: () => void): void => {
  try {
    program()
  } catch (error) {
    const interrupted = error instanceof Interrupted
    process.exitCode = interrupted ? 130 : 1
    if (!interrupted) console.error(`error: ${explain(error)}`)
  }
}
