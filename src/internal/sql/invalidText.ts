/**
 * Limits of texts that become names or messages on the server.
 */

/** Describes the fault of a text that must have `least` to `most` bytes, if the text is invalid. */
export const invalidNameReason = (text: string, least: number, most: number): string | undefined => {
  const bytes = Buffer.from(text)
  if (bytes.length < least) return "empty"
  if (bytes.length > most) return `${bytes.length} bytes long`
  if (text.includes("\0")) return "text with a NUL character"
  // UTF-8 cannot encode a lone surrogate, so the server would receive another character
  return bytes.toString() === text ? undefined : "text that is no Unicode"
}
