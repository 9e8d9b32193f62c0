/**
 * The forms in which a program gives a server: a connection string, parts, or both.
 */
import * as Redacted from "effect/Redacted"
import type { ServerInput, ServerOptions, ServerSettings, ServerSocket, ServerUrl } from "../../ServerConfig.js"
import { concealSecrets } from "../protocol/tlsOptions.js"
import { parseConnectionString } from "./connectionString.js"
import { Invalid, text } from "./optionParsers.js"
import { type Parameters, refuseUnsupported } from "./parameterNames.js"
import { type KnownNames, refuseUnknown } from "./unknownSetting.js"

const common: KnownNames<ServerSettings> = {
  password: true,
  passwordFile: true,
  ssl: true,
  targetSessionAttrs: true,
  loadBalanceHosts: true,
  channelBinding: true,
  weight: true
}
const ofParts: KnownNames<ServerOptions> = { ...common, host: true, port: true, database: true, username: true }
const ofUrl: KnownNames<ServerUrl> = { ...ofParts, url: true }
const ofSocket: KnownNames<ServerSocket> = { ...common, socket: true, name: true, database: true, username: true }

/** The names of other libraries for the parts of a server. */
const synonyms: Readonly<Record<string, string>> = {
  user: "username",
  db: "database",
  dbname: "database",
  connectionString: "url",
  uri: "url",
  hostname: "host",
  hosts: "host",
  tls: "ssl",
  stream: "socket"
}

/** Parts of a server in any form. */
type Parts = ServerSettings & Omit<ServerUrl, "url"> & Omit<Partial<ServerSocket>, "database" | "username">

/** Server in its given form. */
export interface ServerParts {
  /** The parameters of a connection string; `undefined` if there is none. */
  readonly parameters: Parameters | undefined
  readonly parts: Parts
  /** Returns a parameter of the connection string; `undefined` if it is missing or empty, as in libpq. */
  readonly value: (name: string) => string | undefined
  /** The name of a part in errors. */
  readonly part: (name: keyof Parts) => string
  /** The name of a parameter in errors. */
  readonly parameter: (name: string) => string
}

const ofString = (
  setting: string,
  url: Redacted.Redacted<string>,
  parts: Parts,
  part: ServerParts["part"]
): ServerParts => {
  const given = Redacted.value(url)
  // a program without types may redact a value of another type; for an empty text, the error of
  // the parser shows the expected forms
  const parameters = parseConnectionString(setting, given === "" ? given : text(setting, given))
  refuseUnsupported(setting, parameters)
  return {
    parameters,
    parts,
    value: (name) => parameters.get(name) || undefined,
    part,
    parameter: (name) => `${setting} (${name})`
  }
}

/** Returns the given server, with the secrets in its TLS options concealed. */
export const redactInput = (input: ServerInput): ServerInput =>
  Redacted.isRedacted(input) || typeof input?.ssl !== "object" ? input : { ...input, ssl: concealSecrets(input.ssl) }

/** Checks if a server is an empty text, such as an environment variable that is set to nothing. */
export const isEmptyUrl = (input: ServerInput | undefined): boolean =>
  Redacted.isRedacted(input) && Redacted.value(input) === ""

/** Reads a server in any form. Refuses unknown names of parts, and unsupported parameters. */
export const readInput = (setting: string, input: ServerInput): ServerParts => {
  const part = (name: keyof Parts) => `${setting}.${name}`
  if (Redacted.isRedacted(input)) return ofString(setting, input, {}, part)
  if (typeof input !== "object" || input === null) {
    throw new Invalid(
      setting,
      "neither a redacted URL nor a server in parts",
      "Redacted.make of a URL like postgres://user:password@host:5432/database"
    )
  }
  if ("url" in input) {
    refuseUnknown(setting, input, ofUrl, synonyms)
    const { url, ...parts } = input
    if (!Redacted.isRedacted(url)) throw new Invalid(`${setting}.url`, "not redacted", "Redacted.make of a URL")
    return ofString(`${setting}.url`, url, parts, part)
  }
  refuseUnknown(setting, input, "socket" in input ? ofSocket : ofParts, synonyms)
  return {
    parameters: undefined,
    parts: input,
    value: () => undefined,
    part,
    parameter: (name) => `${setting} (${name})`
  }
}
