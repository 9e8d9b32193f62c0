/**
 * Call sites, which are locations in the program. Most are recorded only if they are needed,
 * because each costs one or two microseconds.
 */
import { fileURLToPath } from "node:url"
import * as Context from "effect/Context"

/** The folder of the library as stacks name it, which is that of the sources if they are mapped. */
const ownFolder =
  /(?:\(|at )(?:file:\/\/)?([^()\n]*[\\/])internal[\\/]observability[\\/]callSite\./.exec(
    new Error().stack ?? ""
  )?.[1] ?? fileURLToPath(new URL("../..", import.meta.url))

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

/** Location in the program. Its text is made only when it is read. */
export class CallSite {
  private readonly stack: string = ""

  constructor() {
    Error.captureStackTrace(this, CallSite)
  }

  /** Returns function, file, line and column of the nearest frame that belongs to the program. */
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

/** The call site of the statements that are being made, if they were called for earlier. */
let earlier: CallSite | undefined

/** Returns the call site of the caller, if call sites are recorded. */
export const callSite = (): CallSite | undefined => (recorderCount === 0 ? undefined : (earlier ?? new CallSite()))

/** Makes statements later than the program has called for them, with the call site of that call. */
export const atCallSite = <A>(site: CallSite, make: () => A): A => {
  const before = earlier
  earlier = site
  try {
    return make()
  } finally {
    earlier = before
  }
}

/**
 * Returns the call site of a part of a unit of work or transaction, if the part has no label.
 * Errors name the part by its call site. It is always recorded, because a statement costs much more.
 */
export const callSiteOfPart = (label: string | undefined): CallSite | undefined =>
  label === undefined ? new CallSite() : undefined

/** Call site of the running statement, if @effect/sql runs it. */
export class CurrentSite extends Context.Reference<CurrentSite>()("effect-db/internal/CurrentSite", {
  defaultValue: (): CallSite | undefined => undefined
}) {}

/**
 * Adds the frames of the program to the stack of an error, once. Before, the stack has only the
 * frames of the socket's callback.
 *
 * It must be called in an `async` function after an `await`, where V8 knows the functions that
 * await this one.
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

/** The errors with added frames. An error may pass several calls of `trace`. */
const traced = new WeakSet<Error>()
