/**
 * A response of Node's HTTP server that is held until its unit of work has ended. Handlers write to
 * it as usual. The writes are kept, and later sent or replaced by another answer.
 */
import { type OutgoingHttpHeaders, ServerResponse } from "node:http"
import type { KeptAnswer } from "../http/keptAnswer.js"
import { AnswerHead, hasMessage, restoreHead, setAdded, withHeader } from "./answerHead.js"
import { showHeld } from "./deferredDestroy.js"
import { type Call, chunkOf, drop, refuseLate } from "./heldCalls.js"

/** Answer that replaces the answer of a handler. */
export interface Answer {
  readonly status: number
  readonly type: string | undefined
  readonly body: string | Uint8Array
  readonly headers: ReadonlyArray<readonly [name: string, value: string]>
}

/** Returns the headers of an argument of `writeHead`: a record, or a list of names and values. */
const headersOf = (given: object): OutgoingHttpHeaders =>
  Array.isArray(given)
    ? Object.fromEntries(given.flatMap((name, i) => (i % 2 === 0 ? [[String(name), given[i + 1]]] : [])))
    : { ...given }

type Sending = Pick<ServerResponse, "writeHead" | "write" | "end" | "flushHeaders">

/** The handler may write the head of its answer. `status` is the status of a kept `writeHead`. */
class WritingHead {
  readonly _tag = "WritingHead"
  constructor(readonly status: number | undefined) {}
}

/** The handler has begun to send the body of its answer, or has ended the answer. */
class Ready {
  readonly _tag = "Ready"
  constructor(
    readonly head: AnswerHead,
    /** True if a kept `writeHead` sends the head. */
    readonly isHeadKept: boolean,
    readonly restoreSocket: () => void
  ) {}
}

/**
 * State of a held response.
 *
 * - `WritingHead`, `Ready`: the response is held, and writes are kept.
 * - `Released`: writes are sent.
 * - `Replaced`: another answer is sent, and writes are dropped.
 */
type State = WritingHead | Ready | { readonly _tag: "Released" } | { readonly _tag: "Replaced" }

const writing = new WritingHead(undefined)
const released = { _tag: "Released" } as const
const replaced = { _tag: "Replaced" } as const

export class HeldResponse {
  private state: State = writing
  private kept: Array<Call> = []
  private readonly real: Sending
  /**
   * The own properties `headersSent` and `writableEnded` that the response had before this hold.
   * They exist if another middleware holds the same response, and are restored at the end.
   */
  private readonly outside: PropertyDescriptorMap
  private hasEnded = false
  private isEnding = false
  /** True if another answer has begun after the end of the first one. */
  private hasSecond = false
  /** The number of bytes that are held. */
  private size = 0
  /** The headers of a kept `writeHead`. */
  private writtenHeaders: OutgoingHttpHeaders = {}

  /**
   * Holds a response. `onReady` is called once, with the status, when the handler begins to send
   * the body, flushes the headers or ends the response.
   */
  constructor(
    private readonly response: ServerResponse,
    private readonly onReady: (status: number) => void
  ) {
    const { destroy, end, flushHeaders, write, writeHead } = response
    this.real = { end, flushHeaders, write, writeHead }
    // these functions are not removed at the release, because other code may have wrapped them
    Object.assign(response, {
      writeHead: (...args: Parameters<typeof writeHead>) => {
        this.hasSecond ||= this.hasEnded
        // some libraries call `writeHead` with each part of the body until the headers are sent;
        // only the first call counts
        const { state } = this
        if (state._tag === "Ready" || (state._tag === "WritingHead" && state.status !== undefined)) return response
        if (state._tag === "WritingHead") {
          // invalid arguments throw here, where the handler can still send another answer
          new ServerResponse(response.req).writeHead(...args)
          this.state = new WritingHead(args[0])
          const last: unknown = args.at(-1)
          if (typeof last === "object" && last !== null) this.writtenHeaders = headersOf(last)
        }
        this.call({ send: () => writeHead.apply(response, withHeader(args, response)), args: [] })
        return response
      },
      write: (...args: Parameters<typeof write>) => {
        if (this.isLate()) {
          refuseLate(args)
          return false
        }
        if (this.state._tag === "Released") return write.apply(response, args)
        // `byteLength` throws for a value that is no chunk, as Node does
        const length = Buffer.byteLength(args[0])
        this.call({ send: () => write.apply(response, args), args })
        this.begin()
        // false makes the writer wait; a replaced response emits "close" instead of "drain", as
        // after a disconnect of the client
        if (this.state._tag === "Replaced") return false
        // false at the same size as in Node: the writer then waits for "drain", which is emitted
        // when the kept writes are sent
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
        if (this.isHeld && chunk !== undefined && chunk !== null && typeof chunk !== "function") {
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
    const held = this.leave(released)
    if (held === undefined) return
    if (!response.headersSent) {
      if (held._tag === "Ready") restoreHead(response, held.head, held.isHeadKept, this.hasSecond)
      setAdded(response)
    }
    for (const { send } of kept) send()
    const isAwaited = this.size >= response.writableHighWaterMark
    if (isAwaited && !response.writableEnded && !response.writableNeedDrain) response.emit("drain")
  }

  /** Sends another answer. The kept writes and all later ones are dropped. */
  replace({ body, headers: more, status, type }: Answer): void {
    const { kept, real, response } = this
    // the state is `Released` during the sending, because the `end` of HTTP/2 calls `write`
    if (this.leave(released) === undefined) return
    for (const name of response.getHeaderNames()) response.removeHeader(name)
    setAdded(response)
    if (hasMessage(response)) response.statusMessage = ""
    const headers: OutgoingHttpHeaders = {
      ...Object.fromEntries(more),
      ...(type === undefined ? {} : { "content-type": type }),
      "content-length": Buffer.byteLength(body)
    }
    real.writeHead.call(response, status, headers)
    this.end(() => real.end.call(response, body, "utf8"))
    this.state = replaced
    for (const call of kept) drop(call)
  }

  /** Returns the held answer, if it is held as a whole. */
  get whole(): KeptAnswer | undefined {
    const { kept, state, writtenHeaders } = this
    if (state._tag !== "Ready" || !this.hasEnded) return undefined
    const headers = Object.entries({ ...state.head.headers, ...writtenHeaders })
    return {
      status: state.head.status,
      headers: headers.flatMap(([name, value]) =>
        value === undefined ? [] : [[name.toLowerCase(), String(value)] as const]
      ),
      body: Buffer.concat(kept.map(chunkOf))
    }
  }

  /** Drops all writes, because the client has disconnected. */
  discard(): void {
    const { kept } = this
    if (this.leave(replaced) !== undefined) for (const call of kept) drop(call)
  }

  private get isHeld(): boolean {
    const { _tag } = this.state
    return _tag === "WritingHead" || _tag === "Ready"
  }

  /** Ends the hold, and returns its last state, or `undefined` if the hold has ended before. */
  private leave(next: typeof released | typeof replaced): WritingHead | Ready | undefined {
    const { state } = this
    if (state._tag !== "WritingHead" && state._tag !== "Ready") return undefined
    this.state = next
    this.kept = []
    if (state._tag === "Ready") state.restoreSocket()
    for (const name of ["headersSent", "writableEnded"]) Reflect.deleteProperty(this.response, name)
    Object.defineProperties(this.response, this.outside)
    return state
  }

  /** Keeps, sends or drops a call, according to the state. */
  private call(call: Call): void {
    if (this.isHeld) this.kept.push(call)
    else if (this.state._tag === "Released") call.send()
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

  /**
   * Checks if a write is late, because the answer has ended. Records a late write as the beginning
   * of another answer.
   */
  private isLate(): boolean {
    if (this.isEnding) return false
    this.hasSecond ||= this.hasEnded
    return this.hasEnded
  }

  /** Closes the connection: after the kept writes if a held answer has begun, otherwise at once. */
  private close(close: () => void): void {
    const { response, state } = this
    if (state._tag !== "Ready") return close()
    const send = () => {
      if (response.writableEnded) response.once("finish", close)
      // Node sends the written parts of the body at the end of the tick
      else process.nextTick(close)
    }
    this.call({ send, args: [] })
  }

  /** Records the head of the answer, and reports the status. Does nothing at later calls. */
  private begin(): void {
    const { response, state } = this
    if (state._tag !== "WritingHead") return
    const head = new AnswerHead(response, state.status ?? response.statusCode)
    const { req } = response
    // `req.socket` is read late, because another middleware may have replaced it meanwhile
    const restoreSocket = showHeld(req, (args) => this.close(() => Reflect.apply(req.socket.destroy, req.socket, args)))
    this.state = new Ready(head, state.status !== undefined, restoreSocket)
    this.onReady(head.status)
  }
}
