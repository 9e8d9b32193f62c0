/**
 * Small files of the settings: passwords, certificates, keys.
 */
import { constants } from "node:fs"
import * as fs from "node:fs/promises"
import { isLastingFile } from "../../SqlState.js"

export interface TextFile {
  readonly text: string
  /** Its permissions, as `stat` has them. */
  readonly mode: number
}

/** Thrown for a file that cannot be what is meant. */
class Unfit extends Error {}

/** Tells if a file that could not be read is to be mended by a person. */
export const isLasting = (cause: unknown): boolean =>
  cause instanceof Unfit ||
  (cause instanceof Error && "code" in cause && typeof cause.code === "string" && isLastingFile(cause.code))

/** Reads a regular file of `longest` bytes at most. */
export const readTextFile = async (file: string, longest: number): Promise<TextFile> => {
  // opening a named pipe waits for a writer, and would hold up one of Node's few threads without limit; Windows has neither
  const handle = await fs.open(file, constants.O_RDONLY | (constants.O_NONBLOCK ?? 0))
  try {
    const stat = await handle.stat()
    if (!stat.isFile()) throw new Unfit("it is not a regular file")
    if (stat.size > longest) throw new Unfit(`it is longer than ${longest} bytes`)
    return { text: await handle.readFile("utf8"), mode: stat.mode }
  } finally {
    await handle.close()
  }
}
