/**
 * What keeps a text from being a name, or a message, as the server has it.
 */

/** Says what is wrong with a text of at least and at most so many bytes. */
export const invalidNameReason = (text: string, least: number, most: number): string | undefined => {
  const bytes = Buffer.from(text)
  if (bytes.length < least) return "empty"
  if (bytes.length > most) return `${bytes.length} bytes long`
  if (text.includes("\0")) return "text with a NUL character"
  // half of a surrogate pair would arrive as something else
  return bytes.toString() === text ? undefined : "text that is no Unicode"
}
