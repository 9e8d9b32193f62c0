/**
 * A response of Node's HTTP server that is held back until it is known whether what it tells of is stored. Handlers write it as ever; what
 * they write is kept, and sent, or another answer is sent in its place.
 */
import { type OutgoingHttpHeaders, ServerResponse } from "node:http"
import type { Header } from "../request/tokens.js"

/** What is sent in place of what a handler wrote. */
export interface Answer {
  readonly status: number
  readonly type: string
  readonly body: string
}

type Sending = Pick<ServerResponse, "writeHead" | "write" | "end" | "flushHeaders">

/** A call of one of these: who waits for it is told by the last argument. */
interface Call {
  readonly send: () => void
  readonly args: ReadonlyArray<unknown>
}

const cookies = "set-cookie"

const added = new WeakMap<ServerResponse, Header>()

/** Adds a header to whatever is going to be sent as a response that is held. */
export const addHeader = (response: ServerResponse, header: Header | undefined): void => {
  if (header !== undefined) added.set(response, header)
}

/** Whether two cookies have one name. */
const isSame = (one: string, other: string): boolean => one.startsWith(other.slice(0, other.indexOf("=") + 1))

/**
 * The arguments of `writeHead`. Where a header is set before, cookies among these would take the place of it, and of several of one name in a
 * list only the last would be sent.
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
  // the same but for the last, which is a record in any case
  return [...args.slice(0, -1), made] as unknown as Args
}

/** Nothing is sent, and nobody has to wait for it. */
const drop = ({ args }: Call): void => {
  const last = args.at(-1)
  if (typeof last === "function") process.nextTick(last)
}

export class HeldResponse {
  private state: "held" | "released" | "replaced" = "held"
  private kept: Array<Call> = []
  private readonly real: Sending
  /** What frameworks look at; another one may hold the same response, around this one. */
  private readonly outside: PropertyDescriptorMap
  private head: number | undefined
  private ready: number | undefined
  private hasEnded = false
  /** How much is held, in bytes. */
  private size = 0

  /** `onReady` is called once, with the status, when a handler begins to send a body or ends the response. */
  constructor(
    private readonly response: ServerResponse,
    private readonly onReady: (status: number) => void
  ) {
    const { end, flushHeaders, write, writeHead } = response
    this.real = { end, flushHeaders, write, writeHead }
    // they stay in place when it is released, for others may have put theirs around them
    Object.assign(response, {
      writeHead: (...args: Parameters<typeof writeHead>) => {
        // there are those who write it again with each part of the body, until it is on its way
        if (this.state === "held" && this.head !== undefined) return response
        // what Node refuses it refuses here, where somebody can still answer something else
        if (this.state === "held") new ServerResponse(response.req).writeHead(...args)
        this.head = args[0]
        this.call({ send: () => writeHead.apply(response, withHeader(args, added.get(response))), args: [] })
        return response
      },
      write: (...args: Parameters<typeof write>) => {
        if (this.state === "released") return write.apply(response, args)
        // what is no chunk is refused here, as by Node
        const length = Buffer.byteLength(args[0])
        this.call({ send: () => write.apply(response, args), args })
        this.begin()
        // when another answer is sent nobody is told to go on: the response closes, as where a client has gone
        if (this.state === "replaced") return false
        // as much as Node takes before it asks to wait for "drain", so that what waits elsewhere is woken by what comes of sending it
        this.size += length
        return this.size < response.writableHighWaterMark
      },
      end: (...args: Parameters<typeof end>) => {
        const chunk: unknown = args[0]
        if (this.state === "held" && chunk !== undefined && chunk !== null && typeof chunk !== "function") {
          Buffer.byteLength(args[0])
        }
        this.call({ send: () => end.apply(response, args), args })
        this.hasEnded = true
        this.begin()
        return response
      },
      flushHeaders: () => {
        this.call({ send: () => flushHeaders.apply(response), args: [] })
        this.begin()
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

  /** Sends what was written, and from now on everything at once. */
  release(): void {
    const { kept, response } = this
    if (!this.leave("released")) return
    if (!response.headersSent) this.setAdded()
    // it was decided by that one
    if (this.head === undefined && this.ready !== undefined) response.statusCode = this.ready
    for (const { send } of kept) send()
    const asked = this.size >= response.writableHighWaterMark
    if (asked && !response.writableEnded && !response.writableNeedDrain) response.emit("drain")
  }

  /** Sends another answer in place of all that was or is going to be written. */
  replace({ body, status, type }: Answer): void {
    const { kept, real, response } = this
    // an `end` may be a `write` and more
    if (!this.leave("released")) return
    for (const name of response.getHeaderNames()) response.removeHeader(name)
    this.setAdded()
    // HTTP/2 has none
    if (Object.hasOwn(response, "statusMessage")) response.statusMessage = ""
    const headers: OutgoingHttpHeaders = { "content-type": type, "content-length": Buffer.byteLength(body) }
    real.writeHead.call(response, status, headers)
    real.end.call(response, body, "utf8")
    this.state = "replaced"
    for (const call of kept) drop(call)
  }

  /** Forgets what was written and is going to be: nobody is there to read it. */
  discard(): void {
    const { kept } = this
    if (this.leave("replaced")) for (const call of kept) drop(call)
  }

  private leave(state: "released" | "replaced"): boolean {
    if (this.state !== "held") return false
    this.state = state
    this.kept = []
    for (const name of ["headersSent", "writableEnded"]) Reflect.deleteProperty(this.response, name)
    Object.defineProperties(this.response, this.outside)
    return true
  }

  /** Sets the header that was added, a cookie beside others that are set. */
  private setAdded(): void {
    const { response } = this
    const header = added.get(response)
    if (header === undefined) return
    const [name, value] = header
    const set = name === cookies ? [response.getHeader(name) ?? []].flat().map(String) : []
    // several may hold the same response
    response.setHeader(name, [...set.filter((one) => !isSame(one, value)), value])
  }

  private call(call: Call): void {
    if (this.state === "held") this.kept.push(call)
    else if (this.state === "released") call.send()
    else drop(call)
  }

  private begin(): void {
    if (this.ready !== undefined || this.state !== "held") return
    this.ready = this.head ?? this.response.statusCode
    this.onReady(this.ready)
  }
}
