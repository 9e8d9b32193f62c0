/**
 * Quoting of names and texts in commands that take no parameters.
 */
import { escapeIdentifier, escapeLiteral } from "../protocol/pgDriver.js"

/**
 * Quotes a name as an identifier. A NUL in it is rejected earlier, when the program passes the
 * name.
 */
export const quoteIdentifier = escapeIdentifier

/** Quotes a text as a literal. */
export const quoteLiteral = escapeLiteral
