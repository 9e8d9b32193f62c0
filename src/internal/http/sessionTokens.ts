/**
 * The causal session of a client, as a signed cookie or header of requests and responses.
 */
import { createHmac, timingSafeEqual } from "node:crypto"
import type * as Duration from "effect/Duration"
import * as Either from "effect/Either"
import type * as Fiber from "effect/Fiber"
import * as Redacted from "effect/Redacted"
import { CurrentSession, decodeSession, encodeSession, Session, type Token, waitOf } from "../../Consistency.js"
import { ConfigInvalid } from "../../DatabaseError.js"
import { aBoolean, aDuration, anything, aText, invalidOption, type OptionRules } from "../config/callOptionRules.js"

/** Options of the tokens of sessions. */
export interface SessionTokenOptions {
  /** The first secret signs; a signature by any of them is accepted. */
  readonly secret: Redacted.Redacted<string> | readonly [Redacted.Redacted<string>, ...Array<Redacted.Redacted<string>>]
  readonly maxWait?: Duration.DurationInput | undefined
  readonly cookie?: string | undefined
  readonly secure?: boolean | undefined
  readonly header?: string | undefined
}

/** Cookie or header of a response. */
export interface SessionReply {
  /** The name of the cookie or header. */
  readonly name: string
  readonly value: string
  /** The attributes of a cookie; `undefined` for a header. */
  readonly cookie:
    | { readonly path: string; readonly httpOnly: true; readonly sameSite: "lax"; readonly secure: boolean }
    | undefined
}

const optionRules: OptionRules<SessionTokenOptions> = {
  // `secretsOf` checks the value
  secret: anything,
  maxWait: aDuration,
  cookie: aText,
  secure: aBoolean,
  header: aText
}

const minSecretLength = 32
const maxValueLength = 4096
const name = /^[\w!#$%&'*+.^`|~-]+$/

/** The headers that a session must not use: they describe the message, or other code sets them. */
const reserved = /^(content-.*|transfer-encoding|connection|keep-alive|date|host|set-cookie|cookie|trailer|upgrade|te)$/

const refuse = (setting: string, given: string, expected: string): never => {
  throw new ConfigInvalid({ database: "", setting: `readYourWrites.${setting}`, given, expected })
}

const checked = (setting: string, given: string): string =>
  name.test(given) ? given : refuse(setting, JSON.stringify(given), "a name of letters, digits and -_.")

/**
 * Returns the secrets. Throws `ConfigInvalid` if one is too short or no redacted text. A program
 * without types may pass any value, such as an unset variable or an empty list.
 */
const secretsOf = (secret: SessionTokenOptions["secret"]): readonly [string, ...Array<string>] => {
  const given: ReadonlyArray<unknown> = [secret].flat()
  const [first = "", ...others] = given.map((one) => {
    const text = Redacted.isRedacted(one) ? Redacted.value(one) : undefined
    return typeof text === "string" ? text : refuse("secret", "no redacted text", "Redacted.make(...)")
  })
  for (const { length } of [first, ...others]) {
    if (length < minSecretLength)
      refuse("secret", `one of ${length} characters`, `at least ${minSecretLength} characters`)
  }
  return [first, ...others]
}

/** Returns the value of a cookie in a request's header. */
const cookieIn = (header: string, wanted: string): string | undefined => {
  for (const part of header.split(";")) {
    const at = part.indexOf("=")
    if (at > 0 && part.slice(0, at).trim() === wanted) return part.slice(at + 1).trim()
  }
  return undefined
}

const sign = (secret: string, text: string): Buffer => createHmac("sha256", secret).update(`effect-db ${text}`).digest()

/** Session of one request. The cookie or header is read when the tokens are first needed. */
export class RequestSession extends Session {
  /** Called when there are new tokens for the response. */
  onNewTokens: (() => void) | undefined = undefined
  private hasNewTokens = false

  constructor(
    load: () => Iterable<readonly [string, Token | "unknown"]>,
    private readonly tokens: SessionTokens
  ) {
    super(load, tokens.maxWait)
    this.onChange = () => {
      this.hasNewTokens = true
      this.onNewTokens?.()
    }
  }

  /** Returns the cookie or header for the response if there are new tokens since the last call. */
  takeReply(): SessionReply | undefined {
    if (!this.hasNewTokens) return undefined
    this.hasNewTokens = false
    return this.tokens.replyFor(this)
  }
}

/** Returns the session of the request that a fiber handles, if there is one. */
export const sessionOf = (fiber: Fiber.RuntimeFiber<unknown, unknown>): RequestSession | undefined => {
  const session: unknown = fiber.currentContext.unsafeMap.get(CurrentSession.key)
  return session instanceof RequestSession ? session : undefined
}

/** Encoder and decoder of the sessions of clients. */
export class SessionTokens {
  readonly maxWait: number
  private readonly secrets: readonly [string, ...Array<string>]
  private readonly name: string
  private readonly cookie: SessionReply["cookie"]

  constructor(options: SessionTokenOptions) {
    const invalid = invalidOption("", options, optionRules, "readYourWrites")
    if (invalid !== undefined) throw invalid
    const { cookie = "effect-db", header, maxWait, secret, secure = false } = options
    this.secrets = secretsOf(secret)
    this.name = header === undefined ? checked("cookie", cookie) : checked("header", header.toLowerCase())
    if (header !== undefined && reserved.test(this.name)) refuse("header", JSON.stringify(header), "one of your own")
    this.cookie = header === undefined ? { path: "/", httpOnly: true, sameSite: "lax", secure } : undefined
    this.maxWait = waitOf(maxWait)
  }

  /** Makes the session of a request. A cookie or header without a valid signature is ignored. */
  session(header: (name: string) => string | null | undefined): RequestSession {
    return new RequestSession(() => {
      const received = this.cookie === undefined ? header(this.name) : cookieIn(header("cookie") ?? "", this.name)
      return this.read(received ?? "")
    }, this)
  }

  /** Makes the cookie or header of a session. */
  replyFor(session: Session): SessionReply {
    const text = encodeSession(session)
    const value = `${Buffer.from(text).toString("base64url")}.${sign(this.secrets[0], text).toString("base64url")}`
    return { name: this.name, value, cookie: this.cookie }
  }

  private read(value: string): Iterable<readonly [string, Token | "unknown"]> {
    if (value.length > maxValueLength) return []
    const [encoded = "", signature = ""] = value.split(".")
    const text = Buffer.from(encoded, "base64url").toString()
    const given = Buffer.from(signature, "base64url")
    const isOurs = this.secrets.some((secret) => {
      const expected = sign(secret, text)
      return expected.length === given.length && timingSafeEqual(expected, given)
    })
    return isOurs ? Either.match(decodeSession(text), { onLeft: () => [], onRight: ({ known }) => known }) : []
  }
}

/** Header of a response. */
export type Header = readonly [name: string, value: string]

/** Returns a cookie or header as a header of a response. */
export const headerOf = (reply: SessionReply | undefined): Header | undefined => {
  if (reply === undefined) return undefined
  const { cookie, name, value } = reply
  if (cookie === undefined) return [name, value]
  return ["set-cookie", `${name}=${value}; Path=/; HttpOnly; SameSite=Lax${cookie.secure ? "; Secure" : ""}`]
}
