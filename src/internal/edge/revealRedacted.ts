/**
 * The `SecretType` of programs with Effect: a secret among the values of a statement is a
 * `Redacted`.
 */
import * as Redacted from "effect/Redacted"
import { type SecretType, setSecretType } from "../protocol/secret.js"

const redacted: SecretType = {
  json: JSON.stringify(Redacted.make(undefined)).slice(1, -1),
  isSecret: Redacted.isRedacted,
  reveal: (secret) => (Redacted.isRedacted(secret) ? Redacted.value(secret) : secret)
}

/** Makes statements send the value of each `Redacted`; called before a database is opened. */
export const revealRedactedValues = (): void => setSecretType(redacted)
