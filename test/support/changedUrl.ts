import * as Redacted from "effect/Redacted"

/** Returns a copy of a URL with a change. */
export const changedUrl = (url: Redacted.Redacted<string>, change: (url: URL) => void): Redacted.Redacted<string> => {
  const changed = new URL(Redacted.value(url))
  change(changed)
  return Redacted.make(changed.href)
}
