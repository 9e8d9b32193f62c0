/**
 * Signals with which a program aborts its calls. A signal may live as long as the program and be
 * passed to every call, so it gets one listener for all calls. The listener is removed after the
 * last call. `AbortSignal.any` would keep an object of each call as long as the signal lives.
 */

const followed = new WeakMap<AbortSignal, Followers>()

/** Signals of the calls that one signal of the program aborts. */
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

/** Makes a signal that any of several signals aborts, until `stop` is called. */
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
