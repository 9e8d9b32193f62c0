/**
 * A value that several owners open and close: the first one opens it, the last one closes it.
 */

/** State of the value: never opened, open with a number of owners, or closed again. */
type State<A> =
  | { readonly _tag: "new" | "closed" }
  | { readonly _tag: "open"; readonly opened: Promise<A>; owners: number; value: A | undefined }

/** Value that is opened and closed by count. */
export class RefCounted<A> {
  private state: State<A> = { _tag: "new" }
  /** The end of the last close, which comes before the next open. */
  private closing: Promise<void> = Promise.resolve()

  constructor(
    private readonly start: () => Promise<A>,
    private readonly stop: (value: A) => Promise<void>
  ) {}

  /** The value, if it is open at this moment. */
  get current(): A | undefined {
    return this.state._tag === "open" ? this.state.value : undefined
  }

  /** The value that is open or opening, or the reason why there is none. */
  get opened(): Promise<A> | "notYet" | "closed" {
    if (this.state._tag === "open") return this.state.opened
    return this.state._tag === "new" ? "notYet" : "closed"
  }

  /** Adds an owner. A failure to open rejects all waiting calls, and a later call tries again. */
  open(): Promise<A> {
    return this.openFor(1)
  }

  /** Opens the value without an owner: for a caller that never closes it. */
  use(): Promise<A> {
    return this.openFor(0)
  }

  private openFor(owners: 0 | 1): Promise<A> {
    if (this.state._tag === "open") {
      this.state.owners += owners
      return this.state.opened
    }
    const before = this.state
    // a value that could not be closed properly counts as closed, too
    const opened = this.closing.then(this.start, this.start)
    const state: State<A> = { _tag: "open", opened, owners, value: undefined }
    this.state = state
    opened.then(
      (value) => {
        state.value = value
      },
      () => {
        if (this.state === state) this.state = before
      }
    )
    return opened
  }

  /** Removes an owner; the last one closes the value. Further calls wait for that end. */
  close(): Promise<void> {
    const { state } = this
    if (state._tag !== "open") return this.closing
    if (state.owners > 1) {
      state.owners--
      return Promise.resolve()
    }
    this.state = { _tag: "closed" }
    // a value that could not be opened needs no close; the calls of `open` have got the failure
    this.closing = state.opened.then(this.stop, () => {})
    return this.closing
  }
}
