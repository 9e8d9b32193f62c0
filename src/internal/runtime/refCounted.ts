/**
 * Something that is opened and closed by several owners: the first opens it, the last closes it, and nobody sees it half open.
 */

/** How it stands: never opened, or how many have it open, or closed again. */
type State<A> =
  | { readonly _tag: "new" | "closed" }
  | { readonly _tag: "open"; readonly opened: Promise<A>; owners: number; value: A | undefined }

export class RefCounted<A> {
  private state: State<A> = { _tag: "new" }
  /** What has to be over before it can be opened again. */
  private closing: Promise<void> = Promise.resolve()

  constructor(
    private readonly start: () => Promise<A>,
    private readonly stop: (value: A) => Promise<void>
  ) {}

  /** What is open at this moment, if it is; for who cannot wait. */
  get current(): A | undefined {
    return this.state._tag === "open" ? this.state.value : undefined
  }

  /** What is open, or is being opened; else why there is nothing. */
  get opened(): Promise<A> | "notYet" | "closed" {
    if (this.state._tag === "open") return this.state.opened
    return this.state._tag === "new" ? "notYet" : "closed"
  }

  /** One owner more. Where it cannot be opened, all who wait for that are told, and it can be tried again. */
  open(): Promise<A> {
    return this.openFor(1)
  }

  /** Opens it for somebody who is never going to close it, and does not count. */
  use(): Promise<A> {
    return this.openFor(0)
  }

  private openFor(owners: 0 | 1): Promise<A> {
    if (this.state._tag === "open") {
      this.state.owners += owners
      return this.state.opened
    }
    const before = this.state
    // one that could not be closed properly is over, too
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

  /** One owner less; the last one closes it, and waits for that, as does everybody who closes it once more. */
  close(): Promise<void> {
    const { state } = this
    if (state._tag !== "open") return this.closing
    if (state.owners > 1) {
      state.owners--
      return Promise.resolve()
    }
    this.state = { _tag: "closed" }
    // one that could not be opened has nothing to close; its openers know
    this.closing = state.opened.then(this.stop, () => {})
    return this.closing
  }
}
