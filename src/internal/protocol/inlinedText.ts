/**
 * Statements that take no parameters: values are written into the text, and errors show `$1` in
 * place of a value.
 */

/** Statement as errors show it. */
export interface DisplayedStatement {
  readonly shown: string
  /**
   * Converts a position in the sent text to one in the shown text; both count characters, from 1.
   */
  readonly positionOf: (position: number) => number
}

/** Part of a statement, as it is sent and as it is shown. */
interface Part {
  readonly sent: string
  readonly shown: string
}

/** Creates a part without a value. */
export const plain = (text: string): Part => ({ sent: text, shown: text })

/** Statement with its values written into it. */
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
      // a position inside of a value becomes the position of its `$1`
      if (left < length) return before + 1 + (sent === shown ? left : 0)
      left -= length
      before += [...shown].length
    }
    return before + 1
  }
}
