/**
 * A value that the first of its owners opens, and the last one closes.
 */

/** State of the value: never opened, open or opening with a number of owners, or closed. */
type State<A> =
  | { readonly _tag: "new" | "closed" }
  | { readonly _tag: "open"; readonly opened: Promise<A>; owners: number; value: A | undefined }

/** Value with a count of its owners. */
export class RefCounted<A> {
  private state: State<A> = { _tag: "new" }
  /** The end of the last close. The next open waits for it. */
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

  /** Adds an owner, and opens the value if necessary. After a failure, a later call tries again. */
  open(): Promise<A> {
    return this.openFor(1)
  }

  /** Opens the value if necessary, for a caller that does not close it and is no owner. */
  use(): Promise<A> {
    return this.openFor(0)
  }

  private openFor(owners: 0 | 1): Promise<A> {
    if (this.state._tag === "open") {
      this.state.owners += owners
      return this.state.opened
    }
    const before = this.state
    // a value whose close has failed counts as closed, too
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

  /** Removes an owner, and closes the value after the last. Later calls wait for that close. */
  close(): Promise<void> {
    const { state } = this
    if (state._tag !== "open") return this.closing
    if (state.owners > 1) {
      state.owners--
      return Promise.resolve()
    }
    this.state = { _tag: "closed" }
    // a value whose open has failed needs no close; `open` has rejected with the failure
    this.closing = state.opened.then(this.stop, () => {})
    return this.closing
  }
}
