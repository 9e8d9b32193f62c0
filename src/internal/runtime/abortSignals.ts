/**
 * Signals of a program that end its calls. A signal may live as long as the program, and be given to every call: it is listened to once, for
 * as long as anything follows it. `AbortSignal.any` would keep something of each call for as long as the signal lives.
 */

const followed = new WeakMap<AbortSignal, Followers>()

/** The followers of one signal. */
class Followers {
  private readonly all = new Set<AbortController>()

  constructor(private readonly signal: AbortSignal) {
    followed.set(signal, this)
    signal.addEventListener("abort", this.abort, { once: true })
  }

  add(follower: AbortController): void {
    this.all.add(follower)
  }

  remove(follower: AbortController): void {
    if (!this.all.delete(follower) || this.all.size > 0) return
    followed.delete(this.signal)
    this.signal.removeEventListener("abort", this.abort)
  }

  private readonly abort = () => {
    for (const follower of [...this.all]) follower.abort(this.signal.reason)
  }
}

/** Makes a signal that is aborted with the first of others, until `stop`. */
export const onAbort = (
  signals: ReadonlyArray<AbortSignal>
): { readonly signal: AbortSignal; readonly stop: () => void } => {
  const follower = new AbortController()
  const joined: Array<Followers> = []
  for (const signal of signals) {
    if (signal.aborted) follower.abort(signal.reason)
    else {
      const one = followed.get(signal) ?? new Followers(signal)
      one.add(follower)
      joined.push(one)
    }
  }
  return {
    signal: follower.signal,
    stop: () => {
      for (const one of joined) one.remove(follower)
    }
  }
}
