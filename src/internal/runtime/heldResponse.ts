/**
 * A response of Node's HTTP server that is held back until it is known whether what it tells of is stored. Handlers write it as ever; what
 * they write is kept, and sent, or another answer is sent in its place.
 */
import type { OutgoingHttpHeaders, ServerResponse } from "node:http"

/** What is sent in place of what a handler wrote. */
export interface Answer {
  readonly status: number
  readonly type: string
  readonly body: string
}

type Sending = Pick<ServerResponse, "writeHead" | "write" | "end" | "flushHeaders">

export class HeldResponse {
  private state: "held" | "released" | "replaced" = "held"
  private readonly kept: Array<() => void> = []
  private readonly real: Sending
  private status: number | undefined
  private isReady = false

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
        this.status ??= args[0]
        this.send(() => writeHead.apply(response, args))
        return response
      },
      write: (...args: Parameters<typeof write>) => {
        if (this.state === "released") return write.apply(response, args)
        this.send(() => write.apply(response, args))
        this.ready()
        // who waits for "drain" goes on when it is sent
        return this.state === "replaced"
      },
      end: (...args: Parameters<typeof end>) => {
        this.send(() => end.apply(response, args))
        this.ready()
        return response
      },
      flushHeaders: () => {
        this.send(() => flushHeaders.apply(response))
        this.ready()
      }
    })
    // frameworks look whether anything was sent already
    Object.defineProperty(response, "headersSent", { configurable: true, get: () => this.kept.length > 0 })
  }

  /** Sends what was written, and from now on everything at once. */
  release(): void {
    if (!this.leave("released")) return
    const { response } = this
    for (const send of this.kept.splice(0)) send()
    if (!response.writableEnded && !response.writableNeedDrain) response.emit("drain")
  }

  /** Sends another answer in place of all that was or is going to be written. */
  replace({ body, status, type }: Answer): void {
    if (!this.leave("replaced")) return
    const { real, response } = this
    this.kept.length = 0
    for (const name of response.getHeaderNames()) response.removeHeader(name)
    const headers: OutgoingHttpHeaders = { "content-type": type, "content-length": Buffer.byteLength(body) }
    real.writeHead.call(response, status, headers)
    real.end.call(response, body, "utf8")
  }

  private leave(state: "released" | "replaced"): boolean {
    if (this.state !== "held") return false
    this.state = state
    Reflect.deleteProperty(this.response, "headersSent")
    return true
  }

  private send(send: () => void): void {
    if (this.state === "held") this.kept.push(send)
    else if (this.state === "released") send()
  }

  private ready(): void {
    if (this.isReady || this.state !== "held") return
    this.isReady = true
    this.onReady(this.status ?? this.response.statusCode)
  }
}
