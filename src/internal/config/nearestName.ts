/**
 * The known name that is most similar to a mistyped one.
 */

/**
 * Returns the edit distance of two texts. An edit inserts, deletes or replaces a letter, or swaps
 * two neighbours.
 */
const distance = (a: string, b: string): number => {
  let before: ReadonlyArray<number> = []
  let previous: ReadonlyArray<number> = Array.from({ length: b.length + 1 }, (_, j) => j)
  for (let i = 1; i <= a.length; i++) {
    const row = [i]
    for (let j = 1; j <= b.length; j++) {
      const isSame = a[i - 1] === b[j - 1]
      const replaced = (previous[j - 1] ?? 0) + (isSame ? 0 : 1)
      const swapped =
        a[i - 1] === b[j - 2] && a[i - 2] === b[j - 1] ? (before[j - 2] ?? 0) + 1 : Number.POSITIVE_INFINITY
      row.push(Math.min(replaced, swapped, (previous[j] ?? 0) + 1, (row[j - 1] ?? 0) + 1))
    }
    before = previous
    previous = row
  }
  return previous[b.length] ?? 0
}

const plain = (name: string): string => name.toLowerCase().replace(/[^a-z0-9]/g, "")

/** Returns the most similar known name. Returns `undefined` if all known names differ too much. */
export const nearestName = (name: string, known: Iterable<string>): string | undefined => {
  const wanted = plain(name)
  // known names are shorter, and the time of a comparison grows with the product of both lengths
  if (wanted === "" || wanted.length > 64) return undefined
  let found: string | undefined
  let smallest = Number.POSITIVE_INFINITY
  for (const other of known) {
    const apart = distance(wanted, plain(other))
    if (apart < smallest && apart <= Math.max(1, Math.floor(Math.min(wanted.length, plain(other).length) / 3))) {
      found = other
      smallest = apart
    }
  }
  return found
}
