/** Databases for code that cannot await: it calls functions that run in another thread. */
import type { Functions } from "./answer.js"
import type { Ask } from "./protocol.js"
import { start } from "./start.js"

/** Connects to a thread that runs a file and starts at the first call. All calls share the thread and its open databases. */
export const connect = <F extends Functions>(file: URL) => {
  let started: ReturnType<typeof start> | undefined
  const ask = (ask: Ask): unknown => {
    started ??= start(file)
    return started(ask)
  }
  return {
    /** Opens the databases. They are drained and closed when all returned values are disposed. */
    open: (): Disposable => {
      ask({ what: "open" })
      return { [Symbol.dispose]: () => void ask({ what: "close" }) }
    },
    /** Calls a function as one unit of work, which is committed or rolled back when the call returns. */
    call: <K extends keyof F & string>(name: K, ...args: Parameters<F[K]>): Awaited<ReturnType<F[K]>> =>
      // the cast: the answer is the result of the function of that name
      ask({ what: "call", name, args }) as Awaited<ReturnType<F[K]>>,
    /** Runs code whose calls are one unit of work. Inside of another unit of work it joins. */
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
