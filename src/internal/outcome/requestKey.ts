/**
 * The key of a request in the table of markers: a row that is stored with the work of the request,
 * so that a second request with the same key finds it, or collides with it.
 */
import { parameterStep, type Step } from "../protocol/frontendMessages.js"

/** The key of a request, as it is stored. */
export interface RequestKey {
  /** A UUID, the hash of the key and its scope. */
  readonly id: string
  /** The hash of the content of the request. */
  readonly fingerprint: string
}

/** The statement that stores a key, with the answer to keep, or null. */
export const keepText = "SELECT effect_db.keep_key($1, $2, $3)"

/** Returns the parameters of {@link keepText}. */
export const keepValues = (
  { fingerprint, id }: RequestKey,
  answer: string | undefined
): ReadonlyArray<string | null> => [id, fingerprint, answer ?? null]

/** Returns the step before COMMIT that stores a key. It is never sent alone. */
export const keepStep = (key: RequestKey, answer: string | undefined): Step =>
  parameterStep("", keepText, keepValues(key, answer), false, () => keepText)

/** The query of a key. */
export const findText =
  "SELECT o.fingerprint, o.answer FROM effect_db.outcome o WHERE o.id OPERATOR(pg_catalog.=) $1::pg_catalog.uuid"

/** The statement that removes the answer that is kept with a key. */
export const forgetText =
  "UPDATE effect_db.outcome SET answer = NULL WHERE id OPERATOR(pg_catalog.=) $1::pg_catalog.uuid"

/** Checks if a refused statement has collided with a stored key. */
export const isKeyTaken = ({
  schema,
  table
}: {
  readonly schema?: string | undefined
  readonly table?: string | undefined
}): boolean => schema === "effect_db" && table === "outcome"
