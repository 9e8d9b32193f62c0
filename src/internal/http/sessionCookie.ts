/**
 * What a client is given of what it has written, and brings back with its next request: a session, signed, in a cookie or a header.
 */
import { createHmac, timingSafeEqual } from "node:crypto"
import type * as Duration from "effect/Duration"
import * as Either from "effect/Either"
import type * as Fiber from "effect/Fiber"
import * as Redacted from "effect/Redacted"
import { CurrentSession, decodeSession, encodeSession, Session, type Token, waitOf } from "../../Consistency.js"
import { ConfigInvalid } from "../../DatabaseError.js"

interface Common {
  /**
   * Signs what a client brings back, which it else could make up: 32 characters at least, the same in all processes. Of several the first
   * signs and all are accepted, so that one can be replaced by another.
   */
  readonly secret: Redacted.Redacted<string> | readonly [Redacted.Redacted<string>, ...Array<Redacted.Redacted<string>>]
  /** How long a read waits for a replica that is behind, before the primary is read; 50 ms. One that does not answer is given a second. */
  readonly maxWait?: Duration.DurationInput | undefined
}

interface InCookie {
  /** The cookie's name; `"effect-db"`. */
  readonly cookie?: string | undefined
  /** Whether the cookie is sent over TLS only; `false`, for it holds no secret. */
  readonly secure?: boolean | undefined
  readonly header?: undefined
}

interface InHeader {
  /** A header in place of the cookie, for clients that keep none: they send with each request what the last response had in it. */
  readonly header: string
  readonly cookie?: undefined
  readonly secure?: undefined
}

/** How a client's later requests see what its earlier ones have written. */
export type ReadYourWrites = Common & (InCookie | InHeader)

/** What a response is to give back to the client. */
export interface SessionReply {
  /** The name of the cookie or header. */
  readonly name: string
  readonly value: string
  /** How a cookie is set; no cookie where there is none. */
  readonly cookie:
    | { readonly path: string; readonly httpOnly: true; readonly sameSite: "lax"; readonly secure: boolean }
    | undefined
}

const shortest = 32
const longestValue = 4096
const name = /^[\w!#$%&'*+.^`|~-]+$/

/** Those that say how the message itself is to be read, or are set by others. */
const reserved = /^(content-.*|transfer-encoding|connection|keep-alive|date|host|set-cookie|cookie|trailer|upgrade|te)$/

const refuse = (setting: string, given: string, expected: string): never => {
  throw new ConfigInvalid({ database: "", setting: `readYourWrites.${setting}`, given, expected })
}

const checked = (setting: string, given: string): string =>
  name.test(given) ? given : refuse(setting, JSON.stringify(given), "a name of letters, digits and -_.")

/** A program without types may give anything, such as a variable that is not set, or an empty list. */
const secretsOf = (secret: ReadYourWrites["secret"]): readonly [string, ...Array<string>] => {
  const given: ReadonlyArray<unknown> = [secret].flat()
  const [first = "", ...others] = given.map((one) => {
    const text = Redacted.isRedacted(one) ? Redacted.value(one) : undefined
    return typeof text === "string" ? text : refuse("secret", "no redacted text", "Redacted.make(...)")
  })
  for (const { length } of [first, ...others]) {
    if (length < shortest) refuse("secret", `one of ${length} characters`, `at least ${shortest} characters`)
  }
  return [first, ...others]
}

/** The value of a cookie in a request's header. */
const cookieIn = (header: string, wanted: string): string | undefined => {
  for (const part of header.split(";")) {
    const at = part.indexOf("=")
    if (at > 0 && part.slice(0, at).trim() === wanted) return part.slice(at + 1).trim()
  }
  return undefined
}

const sign = (secret: string, text: string): Buffer => createHmac("sha256", secret).update(`effect-db ${text}`).digest()

/** The session of one request. Nothing is read before somebody asks what it knows. */
export class RequestSession extends Session {
  /** Told when there is something new to give back. */
  onNews: (() => void) | undefined = undefined
  private hasNews = false

  constructor(
    load: () => Iterable<readonly [string, Token | "unknown"]>,
    private readonly tokens: SessionTokens
  ) {
    super(load, tokens.maxWait)
    this.onChange = () => {
      this.hasNews = true
      this.onNews?.()
    }
  }

  /** What the response is to give back, each time that there is something new. */
  takeReturned(): SessionReply | undefined {
    if (!this.hasNews) return undefined
    this.hasNews = false
    return this.tokens.returned(this)
  }
}

/** The session of the request that a fiber is part of, if it has one. */
export const sessionOf = (fiber: Fiber.RuntimeFiber<unknown, unknown>): RequestSession | undefined => {
  const session: unknown = fiber.currentContext.unsafeMap.get(CurrentSession.key)
  return session instanceof RequestSession ? session : undefined
}

/** Gives tokens to clients and takes them back. */
export class SessionTokens {
  readonly maxWait: number
  private readonly secrets: readonly [string, ...Array<string>]
  private readonly name: string
  private readonly cookie: SessionReply["cookie"]

  constructor({ cookie = "effect-db", header, maxWait, secret, secure = false }: ReadYourWrites) {
    this.secrets = secretsOf(secret)
    this.name = header === undefined ? checked("cookie", cookie) : checked("header", header.toLowerCase())
    if (header !== undefined && reserved.test(this.name)) refuse("header", JSON.stringify(header), "one of your own")
    this.cookie = header === undefined ? { path: "/", httpOnly: true, sameSite: "lax", secure } : undefined
    this.maxWait = waitOf(maxWait)
  }

  /** The session of a request. What was not signed here, or cannot be read, tells of nothing: nobody is refused for it. */
  session(header: (name: string) => string | null | undefined): RequestSession {
    return new RequestSession(() => {
      const brought = this.cookie === undefined ? header(this.name) : cookieIn(header("cookie") ?? "", this.name)
      return this.read(brought ?? "")
    }, this)
  }

  returned(session: Session): SessionReply {
    const text = encodeSession(session)
    const value = `${Buffer.from(text).toString("base64url")}.${sign(this.secrets[0], text).toString("base64url")}`
    return { name: this.name, value, cookie: this.cookie }
  }

  private read(value: string): Iterable<readonly [string, Token | "unknown"]> {
    if (value.length > longestValue) return []
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

/** A header of a response. */
export type Header = readonly [name: string, value: string]

/** What a response is to give back, as its header. */
export const headerOf = (returned: SessionReply | undefined): Header | undefined => {
  if (returned === undefined) return undefined
  const { cookie, name, value } = returned
  if (cookie === undefined) return [name, value]
  return ["set-cookie", `${name}=${value}; Path=/; HttpOnly; SameSite=Lax${cookie.secure ? "; Secure" : ""}`]
}
