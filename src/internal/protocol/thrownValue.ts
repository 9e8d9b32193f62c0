/** Values that other code has thrown, which may be no errors. */

/** Returns a thrown value as an error. */
export const toError = (cause: unknown): Error => (cause instanceof Error ? cause : new Error(String(cause)))

/** Returns the message of a thrown value. */
export const thrownMessage = (cause: unknown): string => (cause instanceof Error ? cause.message : String(cause))
