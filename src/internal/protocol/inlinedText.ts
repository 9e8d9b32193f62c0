/**
 * A statement that takes no parameters: its values are written into it, and an error shows it with `$1` in their place.
 */

/** A statement as errors show it. */
export interface DisplayedStatement {
  readonly shown: string
  /** Turns a position in the text that was sent into the one in the text that is shown; both count characters, from 1. */
  readonly positionOf: (position: number) => number
}

/** A piece of a statement, as it is sent and as it is shown. */
interface Part {
  readonly sent: string
  readonly shown: string
}

/** Makes a piece that holds no value. */
export const plain = (text: string): Part => ({ sent: text, shown: text })

/** A statement with its values written into it. */
export class Inlined implements DisplayedStatement {
  readonly sent: string
  readonly shown: string

  constructor(readonly parts: ReadonlyArray<Part>) {
    this.sent = parts.map(({ sent }) => sent).join("")
    this.shown = parts.map(({ shown }) => shown).join("")
  }

  positionOf(position: number): number {
    let left = position - 1
    let before = 0
    for (const { sent, shown } of this.parts) {
      const length = [...sent].length
      // in the middle of a value it is the place of that
      if (left < length) return before + 1 + (sent === shown ? left : 0)
      left -= length
      before += [...shown].length
    }
    return before + 1
  }
}
