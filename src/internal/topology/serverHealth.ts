/**
 * The health of a reader, and its transitions. They are pure, so that every order of events can be
 * tested on virtual time.
 */

/**
 * Health of a reader.
 *
 * - `unknown`: no connect has succeeded or failed yet; reads use the server.
 * - `up`: reads use the server.
 * - `suspect`: callers wait for answers; reads use other servers, if there are any.
 * - `down`: a connect has failed, or the server is silent; no read uses it until a time, which is
 *   infinite if a monitor tries the server.
 * - `trial`: the time of the failure is over, and one read tries the server; no other uses it.
 */
export type Health =
  | { readonly _tag: "unknown" }
  | { readonly _tag: "up" }
  | { readonly _tag: "suspect" }
  | { readonly _tag: "down"; readonly message: string; readonly until: number }
  | { readonly _tag: "trial"; readonly message: string; readonly since: number; readonly until: number }

/** The health before the first event. */
export const initial: Health = { _tag: "unknown" }

const up: Health = { _tag: "up" }

/** Handles an answer of the server, to a connect or to a probe. */
export const onAnswer = (): Health => up

/** Handles a failed connect or probe: the server is left out until `until`. */
export const onFailure = (message: string, until: number): Health => ({ _tag: "down", message, until })

/** Handles a silence for which callers wait. */
export const onSilence = (health: Health): Health =>
  health._tag === "up" || health._tag === "unknown" ? { _tag: "suspect" } : health

/** Handles the choice of the server for a read, which is the trial of a server that was left out. */
export const onChosen = (health: Health, now: number, until: number): Health =>
  health._tag === "down" || health._tag === "trial"
    ? { _tag: "trial", message: health.message, since: now, until }
    : health

/** Returns the health as it is shown: a server whose time has passed waits for a trial. */
export const shown = (health: Health, now: number): Health["_tag"] =>
  health._tag === "down" && now >= health.until ? "trial" : health._tag

/** Checks if a read may use the server. A trial without an answer is repeated after its time. */
export const isUsable = (health: Health, now: number): boolean =>
  (health._tag !== "down" && health._tag !== "trial") || now >= health.until
