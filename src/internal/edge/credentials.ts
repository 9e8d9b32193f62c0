/**
 * The provider of the credentials of a server. It runs effects of the program, and conceals the
 * secrets in their results and failures.
 */
import * as Cause from "effect/Cause"
import * as Effect from "effect/Effect"
import * as Redacted from "effect/Redacted"
import type * as Runtime from "effect/Runtime"
import type { Connector, Credentials, DatabaseConfig, ServerConfig } from "../../DatabaseConfig.js"
import type { ConnectFailure } from "../connection/connectFailure.js"
import { type CredentialProvider, CredentialSource, type ProvidedCredentials } from "../connection/credentials.js"
import type { Dial } from "../connection/destination.js"
import { PasswordFileError, readPassword } from "../connection/passwordFile.js"
import { isLasting } from "../connection/textFile.js"
import { Secret } from "../protocol/secret.js"
import { connectedStream } from "../protocol/socket.js"
import { toError } from "../protocol/thrownValue.js"
import { makeRun, type Run } from "./runCallback.js"

const secretOf = (redacted: Redacted.Redacted<string> | undefined): Secret | undefined =>
  redacted === undefined ? undefined : new Secret(Redacted.value(redacted))

/**
 * Checks credentials of the program, and conceals the password in a `Secret`. The credentials may
 * be of a wrong type, for example if they were read from JSON.
 */
const checked = (given: Credentials, tlsPassphrase: Secret | undefined): ProvidedCredentials => {
  if (typeof given?.username !== "string" || given.username === "") throw new Error("no user was given")
  const password: unknown = given.password === undefined ? undefined : Redacted.value(given.password)
  if (password !== undefined && typeof password !== "string") throw new Error("the password is not a string")
  // in a message of the protocol a NUL would end the text, and the rest would be read as another
  // parameter
  if (`${given.username}${password ?? ""}`.includes("\0"))
    throw new Error("the user or the password contains a NUL character")
  const { username, version } = given
  return { username, password: password === undefined ? undefined : new Secret(password), version, tlsPassphrase }
}

/**
 * Returns the failure of a connect for the failure of a source of credentials. That failure may
 * contain a secret, so it is in a `Redacted`: a program can read it, and a log that prints causes
 * does not show it. The failure of a password file contains none.
 */
const failureOf = (cause: unknown, isDynamic: boolean): ConnectFailure => {
  const error = Cause.isCause(cause) ? Cause.squash(cause) : cause
  if (error instanceof PasswordFileError) return { reason: "credentials", error, isPermanent: isLasting(error.cause) }
  const why = isDynamic ? "the provider of credentials failed" : "the user or the password of the settings is invalid"
  return {
    reason: "credentials",
    error: new Error(why, { cause: Redacted.make(error) }),
    isPermanent: !isDynamic
  }
}

/**
 * Returns a function that opens a stream by an effect of the program. The failures of the effect
 * are concealed like those of a source of credentials.
 */
const dialBy =
  (connector: Connector, run: Run): Dial =>
  (callback) =>
    run(connector, (stream, cause) => {
      if (cause !== undefined) {
        const error = Cause.squash(cause)
        return callback(
          new Error("the effect that opens the socket failed", { cause: Redacted.make(error) }),
          undefined
        )
      }
      try {
        callback(undefined, connectedStream(stream))
      } catch (cause) {
        callback(toError(cause), undefined)
      }
    })

/** Returns the effect that reads the password from a file. */
const fromFile = (username: string, file: string): Effect.Effect<Credentials, unknown> =>
  Effect.map(Effect.tryPromise({ try: () => readPassword(file), catch: (error) => error }), (password) => ({
    username,
    password: Redacted.make(password)
  }))

const makeProvider = (
  source: Effect.Effect<Credentials, unknown>,
  isDynamic: boolean,
  { socket, tlsFiles }: ServerConfig,
  run: Run
): CredentialProvider => ({
  isDynamic,
  request: (callback) =>
    run(
      Effect.map(source, (given) => checked(given, secretOf(tlsFiles?.sslpassword))),
      (provided, cause) => callback(provided, provided === undefined ? failureOf(cause, isDynamic) : undefined)
    ),
  dial: socket && dialBy(socket, run)
})

/** Creates the source of the credentials of a server. */
export const makeCredentialSource = (
  config: DatabaseConfig,
  server: ServerConfig,
  runtime: Runtime.Runtime<never>
): CredentialSource => {
  const { credentials } = config.options
  const { password, passwordFile, username } = server
  const run = makeRun(runtime)
  const provider =
    credentials !== undefined
      ? makeProvider(credentials, true, server, run)
      : passwordFile === undefined
        ? makeProvider(Effect.succeed({ username, password }), false, server, run)
        : makeProvider(fromFile(username, passwordFile), true, server, run)
  return new CredentialSource(provider)
}
