/** Databases for code that cannot wait, by the functions of a thread that has them. */
import type { Functions } from "./answer.js"
import type { Ask } from "./protocol.js"
import { start } from "./start.js"

/** Nothing is started before the first use; all of them share the one thread, and what it has open. */
export const connect = <F extends Functions>(file: URL) => {
  let started: ReturnType<typeof start> | undefined
  const ask = (ask: Ask): unknown => {
    started ??= start(file)
    return started(ask)
  }
  return {
    /** Opens the databases, and is counted: the last to leave its block drains and closes them. */
    open: (): Disposable => {
      ask({ what: "open" })
      return { [Symbol.dispose]: () => void ask({ what: "close" }) }
    },
    /** Calls a function, which is one unit of work: stored, or rolled back, when it returns. */
    call: <K extends keyof F & string>(name: K, ...args: Parameters<F[K]>): Awaited<ReturnType<F[K]>> =>
      // what the function of that name gives is what it is answered with
      ask({ what: "call", name, args }) as Awaited<ReturnType<F[K]>>,
    /** All that is called in here is one unit of work; inside of another one it joins. */
    unitOfWork: <A>(code: () => A): A => {
      ask({ what: "begin" })
      let result: A
      try {
        result = code()
      } catch (error) {
        ask({ what: "rollback" })
        throw error
      }
      ask({ what: "commit" })
      return result
    }
  }
}
