/**
 * Small text files of the settings: passwords, certificates, keys.
 */
import { constants } from "node:fs"
import * as fs from "node:fs/promises"
import { isLastingFile } from "../../SqlState.js"

export interface TextFile {
  readonly text: string
  /** The permissions, as `stat` reports them. */
  readonly mode: number
}

/** Error of a file that is not regular or too large. */
class UnfitFile extends Error {}

/** Checks if the error of reading a file occurs again until the file is corrected. */
export const isLasting = (cause: unknown): boolean =>
  cause instanceof UnfitFile ||
  (cause instanceof Error && "code" in cause && typeof cause.code === "string" && isLastingFile(cause.code))

/** Reads a regular file of at most `maxSize` bytes. */
export const readTextFile = async (file: string, maxSize: number): Promise<TextFile> => {
  // without O_NONBLOCK, opening a named pipe would block one of the few threads of Node until a
  // program writes to it; Windows has no such flag
  const handle = await fs.open(file, constants.O_RDONLY | (constants.O_NONBLOCK ?? 0))
  try {
    const stat = await handle.stat()
    if (!stat.isFile()) throw new UnfitFile("it is not a regular file")
    if (stat.size > maxSize) throw new UnfitFile(`it is longer than ${maxSize} bytes`)
    return { text: await handle.readFile("utf8"), mode: stat.mode }
  } finally {
    await handle.close()
  }
}
