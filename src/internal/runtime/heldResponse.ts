/**
 * A response of Node's HTTP server that is held back until its unit of work has ended. Handlers
 * write to it as usual. The writes are kept, and later sent or replaced by another answer.
 */
import { type OutgoingHttpHeaders, ServerResponse } from "node:http"
import { Writable } from "node:stream"
import type { Header } from "../http/sessionCookie.js"
import { showHeld } from "./heldSocket.js"

/** Answer that replaces the answer of a handler. */
export interface Answer {
  readonly status: number
  readonly type: string
  readonly body: string
}

type Sending = Pick<ServerResponse, "writeHead" | "write" | "end" | "flushHeaders">

/** Kept call of a function of `Sending`. Its last argument may be a callback. */
interface Call {
  readonly send: () => void
  readonly args: ReadonlyArray<unknown>
}

/** Headers and status message at the moment when an answer began. */
interface Begun {
  readonly headers: OutgoingHttpHeaders
  readonly statusMessage: string
}

const cookies = "set-cookie"

/** The headers that describe a body, and so belong to the first answer. */
const ofBody = /^(content-.*|transfer-encoding|trailer|etag|last-modified|location)$/

const added = new WeakMap<ServerResponse, Header>()

/** Adds a header to the answer that will be sent. */
export const addHeader = (response: ServerResponse, header: Header | undefined): void => {
  if (header !== undefined) added.set(response, header)
}

/** Checks if two cookies have the same name. */
const isSame = (one: string, other: string): boolean => one.startsWith(other.slice(0, other.indexOf("=") + 1))

/**
 * Returns arguments of `writeHead` with all values of each header, an added cookie included.
 * Otherwise Node would replace a cookie that was set before by the cookies of the arguments, and of
 * several headers of one name in a list it would send only the last.
 */
const withHeader = <Args extends ReadonlyArray<unknown>>(args: Args, header: Header | undefined): Args => {
  const head: unknown = args.at(-1)
  if (header === undefined || typeof head !== "object" || head === null) return args
  const pairs: ReadonlyArray<ReadonlyArray<unknown>> = Array.isArray(head)
    ? head.flatMap((name, i) => (i % 2 === 0 ? [[name, head[i + 1]]] : []))
    : Object.entries(head)
  const all = new Map<string, { readonly name: unknown; readonly values: Array<unknown> }>()
  for (const [name, value] of pairs) {
    const known = all.get(String(name).toLowerCase())
    if (known === undefined) all.set(String(name).toLowerCase(), { name, values: [value].flat() })
    else known.values.push(...[value].flat())
  }
  const own = all.get(cookies)
  if (header[0] === cookies && own !== undefined) own.values.push(header[1])
  const made = Object.fromEntries(
    Array.from(all.values(), ({ name, values }) => [name, values.length === 1 ? values[0] : values])
  )
  // the cast: only the headers differ, and Node takes a record as well as a list
  return [...args.slice(0, -1), made] as unknown as Args
}

/** Checks if a response has a status message. HTTP/2 has none, and warns when it is read. */
const hasMessage = (response: ServerResponse): boolean => Object.hasOwn(response, "statusMessage")

/**
 * Refuses a write after the end of the body as a stream of Node does, but without an `error` event,
 * which would end the process.
 */
const refuseLate = (args: ReadonlyArray<unknown>): void => {
  const last = args.at(-1)
  if (typeof last !== "function") return
  const ended = new Writable().on("error", () => {}).end()
  ended.write("", (error) => last(error))
}

/** Calls the callback of a write that is not sent. */
const drop = ({ args }: Call): void => {
  const last = args.at(-1)
  if (typeof last === "function") process.nextTick(last)
}

export class HeldResponse {
  private state: "held" | "released" | "replaced" = "held"
  private kept: Array<Call> = []
  private readonly real: Sending
  /**
   * The earlier descriptors of the properties that frameworks read: another middleware may hold the
   * same response.
   */
  private readonly outside: PropertyDescriptorMap
  private head: number | undefined
  private ready: number | undefined
  private begun: Begun | undefined
  private hasEnded = false
  private isEnding = false
  /** True if another answer has begun after the end of the first one. */
  private hasSecond = false
  private hideSocket = () => {}
  /** The number of bytes that are held. */
  private size = 0

  /**
   * Holds a response. `onReady` is called once, with the status, when a handler begins to send a
   * body or ends the response.
   */
  constructor(
    private readonly response: ServerResponse,
    private readonly onReady: (status: number) => void
  ) {
    const { destroy, end, flushHeaders, write, writeHead } = response
    this.real = { end, flushHeaders, write, writeHead }
    // these functions stay after the release, because other code may have wrapped them
    Object.assign(response, {
      writeHead: (...args: Parameters<typeof writeHead>) => {
        this.hasSecond ||= this.hasEnded
        // some libraries call it again with each part of the body until the headers are sent; the
        // first call counts
        if (this.state === "held" && (this.head ?? this.ready) !== undefined) return response
        // arguments that Node refuses are refused here, where the handler can still send another answer
        if (this.state === "held") new ServerResponse(response.req).writeHead(...args)
        this.head = args[0]
        this.call({ send: () => writeHead.apply(response, withHeader(args, added.get(response))), args: [] })
        return response
      },
      write: (...args: Parameters<typeof write>) => {
        if (this.isLate()) {
          refuseLate(args)
          return false
        }
        if (this.state === "released") return write.apply(response, args)
        // this throws for a value that is no chunk, as Node does
        const length = Buffer.byteLength(args[0])
        this.call({ send: () => write.apply(response, args), args })
        this.begin()
        // a replaced response emits no "drain" event: it closes, like after a disconnect of the
        // client
        if (this.state === "replaced") return false
        // false at the same size as in Node: the writer then waits for "drain", which follows when
        // the kept writes are sent
        this.size += length
        return this.size < response.writableHighWaterMark
      },
      end: (...args: Parameters<typeof end>) => {
        const chunk: unknown = args[0]
        // Node accepts a second end if it has no body
        if (this.isLate() && typeof chunk !== "function" && chunk) {
          refuseLate(args)
          return response
        }
        if (this.state === "held" && chunk !== undefined && chunk !== null && typeof chunk !== "function") {
          Buffer.byteLength(args[0])
        }
        this.call({ send: () => this.end(() => end.apply(response, args)), args })
        this.hasEnded = true
        this.begin()
        return response
      },
      flushHeaders: () => {
        if (this.hasEnded) return
        this.call({ send: () => flushHeaders.apply(response), args: [] })
        this.begin()
      },
      destroy: (...args: Parameters<typeof destroy>) => {
        this.close(() => destroy.apply(response, args))
        return response
      }
    })
    const shown = {
      headersSent: { configurable: true, get: () => this.kept.length > 0 },
      writableEnded: { configurable: true, get: () => this.hasEnded }
    }
    this.outside = Object.fromEntries(
      Object.keys(shown).flatMap((name) => {
        const before = Object.getOwnPropertyDescriptor(response, name)
        return before === undefined ? [] : [[name, before]]
      })
    )
    Object.defineProperties(response, shown)
  }

  /** Sends the kept writes. Later writes are sent at once. */
  release(): void {
    const { kept, response } = this
    if (!this.leave("released")) return
    if (!response.headersSent) {
      this.takeBack()
      this.setAdded()
    }
    for (const { send } of kept) send()
    const asked = this.size >= response.writableHighWaterMark
    if (asked && !response.writableEnded && !response.writableNeedDrain) response.emit("drain")
  }

  /** Sends another answer. The kept writes and all later ones are dropped. */
  replace({ body, status, type }: Answer): void {
    const { kept, real, response } = this
    // released for the moment, because the `end` of HTTP/2 calls `write`
    if (!this.leave("released")) return
    for (const name of response.getHeaderNames()) response.removeHeader(name)
    this.setAdded()
    if (hasMessage(response)) response.statusMessage = ""
    const headers: OutgoingHttpHeaders = { "content-type": type, "content-length": Buffer.byteLength(body) }
    real.writeHead.call(response, status, headers)
    this.end(() => real.end.call(response, body, "utf8"))
    this.state = "replaced"
    for (const call of kept) drop(call)
  }

  /** Drops all writes, because the client has disconnected. */
  discard(): void {
    const { kept } = this
    if (this.leave("replaced")) for (const call of kept) drop(call)
  }

  private leave(state: "released" | "replaced"): boolean {
    if (this.state !== "held") return false
    this.state = state
    this.kept = []
    this.hideSocket()
    for (const name of ["headersSent", "writableEnded"]) Reflect.deleteProperty(this.response, name)
    Object.defineProperties(this.response, this.outside)
    return true
  }

  /** Undoes changes since the answer began that would mix it with another answer. */
  private takeBack(): void {
    const { begun, ready, response } = this
    if (begun === undefined || ready === undefined) return
    for (const name of new Set([...Object.keys(begun.headers), ...response.getHeaderNames()])) {
      if (!this.hasSecond && !ofBody.test(name)) continue
      const value = begun.headers[name]
      if (value === undefined) response.removeHeader(name)
      else if (value !== response.getHeader(name)) response.setHeader(name, value)
    }
    // the unit has ended by the earlier status, so that one is sent; a kept `writeHead` has it
    // already
    if (this.head !== undefined) return
    response.statusCode = ready
    if (hasMessage(response)) response.statusMessage = begun.statusMessage
  }

  /** Sets the header that was added. A cookie is added to the other cookies. */
  private setAdded(): void {
    const { response } = this
    const header = added.get(response)
    if (header === undefined) return
    const [name, value] = header
    const set = name === cookies ? [response.getHeader(name) ?? []].flat().map(String) : []
    // several middlewares may hold the same response, and have added the same cookie
    response.setHeader(name, [...set.filter((one) => !isSame(one, value)), value])
  }

  private call(call: Call): void {
    if (this.state === "held") this.kept.push(call)
    else if (this.state === "released") call.send()
    else drop(call)
  }

  /**
   * Ends the response. The `end` of HTTP/2 calls `write` with its chunk, which is not a late write.
   */
  private end(end: () => void): void {
    this.isEnding = true
    try {
      end()
    } finally {
      this.isEnding = false
    }
  }

  /** Checks if the answer has ended, so that a write belongs to another one. */
  private isLate(): boolean {
    if (this.isEnding) return false
    this.hasSecond ||= this.hasEnded
    return this.hasEnded
  }

  /** Closes the connection after the kept writes have been sent. */
  private close(close: () => void): void {
    const { ready, response, state } = this
    if (state !== "held" || ready === undefined) return close()
    const send = () => {
      if (response.writableEnded) response.once("finish", close)
      // Node sends a part of the body at the end of the tick
      else process.nextTick(close)
    }
    this.call({ send, args: [] })
  }

  private begin(): void {
    if (this.ready !== undefined || this.state !== "held") return
    const { head, response } = this
    this.ready = head ?? response.statusCode
    this.begun = { headers: response.getHeaders(), statusMessage: hasMessage(response) ? response.statusMessage : "" }
    const { req } = response
    // the socket is read when it is called: another middleware may have replaced it by then
    this.hideSocket = showHeld(req, (args) => this.close(() => Reflect.apply(req.socket.destroy, req.socket, args)))
    this.onReady(this.ready)
  }
}
