/**
 * Names and texts as a part of a command that takes no parameters.
 */
import pg from "pg"

/** A name, quoted. It holds no NUL: who takes names from a program refuses that before. */
export const quoteIdentifier = (name: string): string => pg.escapeIdentifier(name)

/** A text, quoted. */
export const quoteLiteral = (text: string): string => pg.escapeLiteral(text)
