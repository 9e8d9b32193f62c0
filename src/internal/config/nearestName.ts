/**
 * The known name that a mistyped one most likely stands for.
 */

/** Counts the letters to insert, delete, replace or swap with their neighbour to make one text of the other. */
const distance = (a: string, b: string): number => {
  let before: ReadonlyArray<number> = []
  let previous: ReadonlyArray<number> = Array.from({ length: b.length + 1 }, (_, j) => j)
  for (let i = 1; i <= a.length; i++) {
    const row = [i]
    for (let j = 1; j <= b.length; j++) {
      const same = a[i - 1] === b[j - 1]
      const replaced = (previous[j - 1] ?? 0) + (same ? 0 : 1)
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

/** Returns the known name that is nearest to another, unless none is near: then both would have little in common. */
export const nearestName = (name: string, known: Iterable<string>): string | undefined => {
  const meant = plain(name)
  // no known name is near to one of any length, and the comparison takes time by the product of both
  if (meant === "" || meant.length > 64) return undefined
  let found: string | undefined
  let least = Number.POSITIVE_INFINITY
  for (const other of known) {
    const apart = distance(meant, plain(other))
    if (apart < least && apart <= Math.max(1, Math.floor(Math.min(meant.length, plain(other).length) / 3))) {
      found = other
      least = apart
    }
  }
  return found
}
