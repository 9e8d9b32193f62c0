/**
 * Small files of the settings: passwords, certificates, keys.
 */
import { constants } from "node:fs"
import * as fs from "node:fs/promises"

export interface TextFile {
  readonly text: string
  /** Its permissions, as `stat` has them. */
  readonly mode: number
}

/** Reads a regular file of `longest` bytes at most. */
export const readTextFile = async (file: string, longest: number): Promise<TextFile> => {
  // opening a named pipe waits for a writer, and would hold up one of Node's few threads without limit; Windows has neither
  const handle = await fs.open(file, constants.O_RDONLY | (constants.O_NONBLOCK ?? 0))
  try {
    const stat = await handle.stat()
    if (!stat.isFile()) throw new Error("it is not a regular file")
    if (stat.size > longest) throw new Error(`it is longer than ${longest} bytes`)
    return { text: await handle.readFile("utf8"), mode: stat.mode }
  } finally {
    await handle.close()
  }
}
