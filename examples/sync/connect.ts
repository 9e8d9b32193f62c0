/** Databases for code that cannot await: it calls functions of a thread that has the databases. */
import type { Functions } from "./answer.js"
import type { Ask } from "./protocol.js"
import { start } from "./start.js"

/** Connects to the thread of a file, which starts at the first call. All calls share it and its open databases. */
export const connect = <F extends Functions>(file: URL) => {
  let started: ReturnType<typeof start> | undefined
  const ask = (ask: Ask): unknown => {
    started ??= start(file)
    return started(ask)
  }
  return {
    /** Opens the databases. They are drained and closed at the end of the last block that has opened them. */
    open: (): Disposable => {
      ask({ what: "open" })
      return { [Symbol.dispose]: () => void ask({ what: "close" }) }
    },
    /** Calls a function, which is one unit of work: stored, or rolled back, when it returns. */
    call: <K extends keyof F & string>(name: K, ...args: Parameters<F[K]>): Awaited<ReturnType<F[K]>> =>
      // the cast: the answer is the result of the function of that name
      ask({ what: "call", name, args }) as Awaited<ReturnType<F[K]>>,
    /** Runs code whose calls are one unit of work; inside of another one it joins. */
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
