/**
 * The prepared statements of one connection: by text, bounded, the one used longest ago goes first.
 */
import type { Shape } from "./rows.js"

/** A statement as its connection knows it. */
export interface Prepared {
  readonly name: string
  /** Whether the server has parsed it. */
  parsed: boolean
  /** Its columns, once the server has described them; they cannot change without an error. */
  shape: Shape | undefined
  /** When it was used last, in uses of any. */
  used: number
}

const longest = 16_384

/** @internal */
export class PreparedStatements {
  private readonly byText = new Map<string, Prepared>()
  private toClose: Array<string> = []
  private made = 0
  private uses = 0

  constructor(private readonly limit: number) {}

  /** The statement of this text, or nothing where it is not worth a name: no room, or a text so long that it is likely one of a kind. */
  take(text: string): Prepared | undefined {
    const known = this.byText.get(text)
    if (known !== undefined) {
      // noted down and not moved to the end: a map that is always written to is always being copied
      known.used = ++this.uses
      return known
    }
    if (this.limit === 0 || text.length > longest) return undefined
    const fresh: Prepared = { name: `s${++this.made}`, parsed: false, shape: undefined, used: ++this.uses }
    this.byText.set(text, fresh)
    if (this.byText.size > this.limit) this.dropOldest()
    return fresh
  }

  /** Forgets one statement, and closes it on the server with the next flight. */
  drop(text: string): void {
    const known = this.byText.get(text)
    if (known === undefined) return
    this.byText.delete(text)
    if (known.parsed) this.toClose.push(known.name)
  }

  /** Forgets the one used longest ago. Whoever makes room this way is about to have a statement parsed, which takes far longer. */
  private dropOldest(): void {
    let oldest: string | undefined
    let least = Number.POSITIVE_INFINITY
    for (const [text, { used }] of this.byText) {
      if (used >= least) continue
      oldest = text
      least = used
    }
    if (oldest !== undefined) this.drop(oldest)
  }

  /** Forgets all: after a change of the schema, plans made before it may be refused. */
  dropAll(): void {
    for (const known of this.byText.values()) {
      if (known.parsed) this.toClose.push(known.name)
    }
    this.byText.clear()
  }

  /** What the next flight has to close. */
  takeToClose(): ReadonlyArray<string> {
    if (this.toClose.length === 0) return none
    const names = this.toClose
    this.toClose = []
    return names
  }
}

const none: ReadonlyArray<string> = []
