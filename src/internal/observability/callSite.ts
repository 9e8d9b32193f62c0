/**
 * Call sites: locations in the program. They are recorded only if they are needed, because each costs
 * one or two microseconds.
 */
import { fileURLToPath } from "node:url"
import * as Context from "effect/Context"

const ownFolder = fileURLToPath(new URL("../..", import.meta.url))

const isForeign = (line: string): boolean =>
  !line.includes(ownFolder) && !/node_modules[\\/](@effect[\\/]|effect[\\/]|effect-db[\\/])|\(?node:/.test(line)

let recorderCount = 0

/** Records call sites from now on, until the returned function is called. */
export const recordCallSites = (): (() => void) => {
  recorderCount++
  return () => {
    recorderCount--
  }
}

/** Location in the program. It is formatted only when it is read. */
export class CallSite {
  private readonly stack: string = ""

  constructor() {
    Error.captureStackTrace(this, CallSite)
  }

  /** Returns function, file, line and column of the nearest caller outside of libraries. */
  get location(): string | undefined {
    return this.stack
      .split("\n")
      .slice(1)
      .find(isForeign)
      ?.trim()
      .replace(/^at (async )?/, "")
      .replace("file://", "")
  }
}

/** Returns the call site of the caller, if call sites are recorded. */
export const callSite = (): CallSite | undefined => (recorderCount === 0 ? undefined : new CallSite())

/**
 * Returns the call site of a part without a label, which names the part if it fails. It is always
 * recorded, because it costs little in comparison with a statement.
 */
export const callSiteOfPart = (label: string | undefined): CallSite | undefined =>
  label === undefined ? new CallSite() : undefined

/** Call site of the running statement, for statements that @effect/sql runs. */
export class CurrentSite extends Context.Reference<CurrentSite>()("effect-db/internal/CurrentSite", {
  defaultValue: (): CallSite | undefined => undefined
}) {}

/**
 * Adds the frames of the program to the stack of an error, which has only those of the socket's
 * callback.
 *
 * Called in an `async` function after an `await`, where V8 finds the functions that await it. It costs
 * nothing before there is an error.
 */
export const trace = (error: Error): void => {
  if (traced.has(error)) return
  traced.add(error)
  const here: { stack?: string } = {}
  Error.captureStackTrace(here, trace)
  const frames = (here.stack ?? "").split("\n").slice(1).filter(isForeign)
  const stack = error.stack ?? ""
  const at = stack.indexOf("\n    at ")
  if (frames.length === 0) return
  const [head, rest] = at < 0 ? [stack, ""] : [stack.slice(0, at), stack.slice(at)]
  error.stack = `${head}\n${frames.join("\n")}${rest}`
}

/** The errors that have these frames already: an error passes every `await` up to its handler. */
const traced = new WeakSet<Error>()
