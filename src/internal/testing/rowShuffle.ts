/**
 * The shuffle of rows whose order no ORDER BY defines.
 */
import { PCGRandom } from "effect/Utils"
import type { Connection, Exchange, Failure } from "../connection/connection.js"
import { isUnordered } from "../sql/rowOrder.js"
import type { Instrument } from "./instrumentedExecutor.js"

/**
 * Puts rows into another order. The order depends on the seed and the number of rows only, and it
 * is never the given one.
 */
const shuffle = <A>(rows: Array<A>, seed: number): void => {
  const random = new PCGRandom(seed)
  let hasMoved = false
  for (let i = rows.length - 1; i > 0; i--) {
    const other = random.integer(i + 1)
    hasMoved ||= other !== i
    swap(rows, i, other)
  }
  if (!hasMoved) rows.reverse()
}

const swap = <A>(rows: Array<A>, i: number, other: number): void => {
  const row = rows[i]
  const moved = rows[other]
  // the elements exist, but their type may have `undefined`
  if (row === undefined || moved === undefined) return
  rows[i] = moved
  rows[other] = row
}

/** Instrument that shuffles the rows of queries without ORDER BY. */
export class RowShuffle implements Instrument {
  /** The texts that were examined. */
  private readonly texts = new Map<string, boolean>()

  constructor(private readonly seed: number) {}

  readonly onExchange = (_: Connection, { request, result }: Exchange, failure: Failure | undefined): void => {
    const { copy, isRaw, isSimple, statement } = request
    if (failure !== undefined || copy !== undefined || isRaw || isSimple || statement === undefined) return
    if (result.rows.length > 1 && this.isUnordered(statement.text)) shuffle(result.rows, this.seed)
  }

  private isUnordered(text: string): boolean {
    const known = this.texts.get(text)
    if (known !== undefined) return known
    const found = isUnordered(text)
    this.texts.set(text, found)
    return found
  }
}
