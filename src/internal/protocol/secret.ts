/**
 * The secrets of the settings, and the secrets among the values of statements.
 */

/** Text that is not shown by a log, by JSON, or by code that prints all fields of an object. */
export class Secret {
  readonly #text: string

  constructor(text: string) {
    this.#text = text
  }

  /** Returns the text. */
  reveal(): string {
    return this.#text
  }
}

/** Type of the secrets that a program puts among the values of its statements. */
export interface SecretType {
  /** A part of the JSON of every secret. */
  readonly json: string
  readonly isSecret: (value: unknown) => boolean
  /** Returns the value of a secret, which may be a secret itself. */
  readonly reveal: (secret: unknown) => unknown
}

let secretType: SecretType | undefined

/**
 * Sets the type of secrets. `edge` sets it, because the core imports nothing of Effect at run time.
 */
export const setSecretType = (type: SecretType): void => {
  secretType = type
}

/** Checks if a value is a secret of the program. */
export const isSecret = (value: unknown): boolean => secretType?.isSecret(value) === true

/** Returns the value of a secret, and any other value as it is. */
export const reveal = (value: unknown): unknown => {
  let revealed = value
  while (secretType?.isSecret(revealed) === true) revealed = secretType.reveal(revealed)
  return revealed
}

/** Checks if a JSON text may have the JSON of a secret in it. */
export const mayHaveSecret = (json: string): boolean => secretType !== undefined && json.includes(secretType.json)
