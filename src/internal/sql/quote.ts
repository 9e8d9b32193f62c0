/**
 * Quoting of names and texts in commands that take no parameters.
 */
import { escapeIdentifier, escapeLiteral } from "../protocol/pgDriver.js"

/**
 * Quotes a name as an identifier. Does not check for a NUL, which is rejected before the statement
 * is sent.
 */
export const quoteIdentifier = escapeIdentifier

/** Quotes a text as a literal. */
export const quoteLiteral = escapeLiteral
