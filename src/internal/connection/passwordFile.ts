/**
 * The file of the setting `passwordFile`, which holds one password.
 */

import { thrownMessage } from "../protocol/thrownValue.js"
import { readTextFile } from "./textFile.js"

/**
 * Error of a password file that cannot be used. It holds no secret, while the error of a provider
 * of the program may hold one.
 */
export class PasswordFileError extends Error {
  constructor(
    file: string,
    reason: string,
    /** The error of reading the file. */
    override readonly cause?: unknown
  ) {
    super(`the password file ${file} cannot be used: ${reason}`)
  }
}

/** The largest password file, in bytes: no password is longer. */
const maxFileSize = 65_536

/**
 * Reads the password from a file, without the line break at the end of the file. Rejects with
 * `PasswordFileError`.
 */
export const readPassword = async (file: string): Promise<string> => {
  try {
    const { text } = await readTextFile(file, maxFileSize)
    const password = text.replace(/\r?\n$/, "")
    if (password === "") throw new Error("it is empty")
    return password
  } catch (cause) {
    throw new PasswordFileError(file, thrownMessage(cause), cause)
  }
}
