/**
 * Files that hold a password.
 */
import { readTextFile } from "./textFile.js"

/**
 * Error of a password file without a usable password. Unlike the error of a provider of the
 * program, it has no secret in it.
 */
export class PasswordFileError extends Error {
  constructor(
    file: string,
    why: string,
    /** The error of reading the file. */
    override readonly cause?: unknown
  ) {
    super(`the password file ${file} cannot be used: ${why}`)
  }
}

/** The largest password file, in bytes: no password is longer. */
const maxFileSize = 65_536

/**
 * Reads the password of a file, without a line break at its end. Rejects with `PasswordFileError`.
 */
export const readPassword = async (file: string): Promise<string> => {
  try {
    const { text } = await readTextFile(file, maxFileSize)
    const password = text.replace(/\r?\n$/, "")
    if (password === "") throw new Error("it is empty")
    return password
  } catch (cause) {
    throw new PasswordFileError(file, cause instanceof Error ? cause.message : String(cause), cause)
  }
}
