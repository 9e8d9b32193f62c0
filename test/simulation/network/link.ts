/**
 * One TCP connection of the simulated network.
 */
import { loop } from "../loop/loop.js"
import type { ClientEnd, Host, Network, ServerEnd } from "./network.js"

/** The probes of TCP's keep-alive after the idle time, in ms, as Node sets them. */
const keepAliveProbes = 10_000

/** The time after which TCP gives up data without an acknowledgement, in ms (`tcp_retries2`). */
const retransmissionTimeout = 924_000

/** The longest time until TCP sends a packet again after a cut, in ms. */
const maxRetransmission = 1500

/** The time after which a server gives up a dead connection, in ms (`tcp_keepalives_idle` and its probes). */
const serverKeepAlive = 120_000

type Packet = Buffer | "end" | "reset"

/** One direction of a connection. */
class Direction {
  /** The packets that have arrived at a cut, and are sent again after it. */
  readonly held: Array<Packet> = []
  /** The time at which the last packet arrives. */
  lastAt = 0
  /** True if packets are lost for ever, without a sign for the sender. */
  isDead = false
  /** The time since which packets are without an acknowledgement. */
  unansweredSince: number | undefined = undefined

  constructor(readonly receive: (packet: Packet) => void) {}
}

/** TCP connection between the program and a host. */
export class Link {
  /** The time of the last packet from the host. */
  private heardAt = loop.now
  /** The time of the last bytes of the program. */
  private sentAt = 0
  private keepAlive: number | undefined = undefined
  private server: ServerEnd | undefined = undefined
  private isClosedByClient = false
  private isEndedByClient = false
  private isEndedByServer = false
  /** True if the host does not know the connection any more. */
  private isForgotten = false
  /** True if the program has given the connection up, and the host has not been told. */
  private isTimedOut = false
  private cancelWatch: (() => void) | undefined = undefined
  private readonly toServer: Direction
  private readonly toClient: Direction

  constructor(
    private readonly network: Network,
    readonly host: Host,
    /** The port of the program, which identifies the connection. */
    readonly port: number,
    client: ClientEnd
  ) {
    this.toServer = new Direction((packet) => {
      if (packet === "end" || packet === "reset") this.network.links.delete(this)
      if (this.isForgotten) return packet === "reset" ? undefined : this.answerUnknown()
      if (packet === "end") this.server?.onEnd()
      else if (packet === "reset") this.server?.onReset()
      else this.server?.onData(packet)
    })
    this.toClient = new Direction((packet) => {
      if (this.isClosedByClient) return
      this.heardAt = loop.now
      this.toServer.unansweredSince = undefined
      if (packet === "end") client.onEnd()
      else if (packet === "reset") {
        this.close()
        client.onReset("ECONNRESET")
      } else client.onData(packet)
    })
    this.onTimeout = () => {
      this.close()
      this.isTimedOut = true
      client.onReset("ETIMEDOUT")
    }
  }

  private readonly onTimeout: () => void

  /** Sets the server's end. */
  accept(server: ServerEnd): void {
    this.server = server
  }

  /** Checks if the socket of the program is open. */
  get isOpen(): boolean {
    return !this.isClosedByClient
  }

  get isDead(): boolean {
    return this.toServer.isDead || this.toClient.isDead
  }

  /** Checks if the program has sent something, and has received nothing since. */
  get isAwaitingAnswer(): boolean {
    return this.sentAt > this.heardAt
  }

  setKeepAlive(delay: number | undefined): void {
    this.keepAlive = delay
  }

  sendToServer(chunk: Buffer): void {
    if (this.isClosedByClient) return
    this.sentAt = loop.now
    this.send(this.toServer, chunk)
    this.watch()
  }

  sendToClient(chunk: Buffer): void {
    if (!this.isForgotten && !this.isEndedByServer) this.send(this.toClient, chunk)
  }

  endByClient(): void {
    if (this.isClosedByClient || this.isEndedByClient) return
    this.isEndedByClient = true
    this.send(this.toServer, "end")
  }

  destroyByClient(): void {
    if (this.isClosedByClient) return
    this.close()
    if (!this.isEndedByClient) this.send(this.toServer, "end")
  }

  endByServer(): void {
    if (this.isForgotten || this.isEndedByServer) return
    this.isEndedByServer = true
    this.send(this.toClient, "end")
  }

  /** Resets the connection on both sides. */
  reset(): void {
    if (this.isForgotten) return
    this.send(this.toClient, "reset")
    this.send(this.toServer, "reset")
  }

  /** Resets the connection for the program, while the server does not notice. */
  resetClient(): void {
    if (!this.isForgotten) this.send(this.toClient, "reset")
  }

  resetByServer(): void {
    if (this.isForgotten) return
    this.send(this.toClient, "reset")
    this.isForgotten = true
    this.network.links.delete(this)
  }

  /** Loses all packets of one direction, or of both, from now on. */
  die(direction: "both" | "toClient" | "toServer"): void {
    if (direction !== "toClient") this.toServer.isDead = true
    if (direction !== "toServer") this.toClient.isDead = true
    this.watch()
    loop.schedule(serverKeepAlive, () => {
      this.network.links.delete(this)
      if (!this.isForgotten) this.forgetByServer()
    })
  }

  /** Ends the server's end without a packet, because its host is without power. */
  forgetByServer(): void {
    this.isForgotten = true
    this.server?.onReset()
  }

  /** Sends the held packets again when they can arrive, or watches for a silence. */
  onReachability(): void {
    if (!this.isReachable) return this.watch()
    loop.schedule(this.network.random.between(0, maxRetransmission), () => {
      if (this.isTimedOut && this.isReachable && !this.toServer.isDead) return this.deliver(this.toServer, "reset")
      for (const direction of [this.toServer, this.toClient]) {
        while (this.isReachable && !direction.isDead) {
          const packet = direction.held.shift()
          if (packet === undefined) break
          this.deliver(direction, packet)
        }
      }
    })
    // the next probe of an idle connection finds that the host does not know it
    if (this.isForgotten && this.keepAlive !== undefined) {
      loop.schedule(this.network.random.between(0, this.keepAlive), () => {
        if (this.isReachable) this.answerUnknown()
      })
    }
  }

  private get isReachable(): boolean {
    return this.host.isUp && !this.host.isCut
  }

  private close(): void {
    this.isClosedByClient = true
    this.cancelWatch?.()
  }

  private answerUnknown(): void {
    if (this.isClosedByClient) return
    loop.schedule(this.network.delayOf(this.host), () => {
      if (!this.isClosedByClient && this.isReachable && !this.toClient.isDead) this.toClient.receive("reset")
    })
  }

  private send(direction: Direction, packet: Packet): void {
    direction.unansweredSince ??= loop.now
    if (direction.isDead) return
    const at = Math.max(direction.lastAt, loop.now + this.network.delayOf(this.host))
    direction.lastAt = at
    loop.schedule(at - loop.now, () => {
      if (direction.isDead) return
      // TCP keeps the order: nothing passes a packet that is held
      if (!this.isReachable || direction.held.length > 0) direction.held.push(packet)
      else this.deliver(direction, packet)
    })
  }

  private deliver(direction: Direction, packet: Packet): void {
    direction.unansweredSince = undefined
    direction.receive(packet)
  }

  /** Ends the connection for the program if TCP gets no sign of the host for too long. */
  private watch(): void {
    if (this.cancelWatch !== undefined || this.isClosedByClient || (this.isReachable && !this.isDead)) return
    const { unansweredSince } = this.toServer
    const due =
      unansweredSince === undefined
        ? this.keepAlive === undefined
          ? undefined
          : this.heardAt + this.keepAlive + keepAliveProbes
        : unansweredSince + retransmissionTimeout
    if (due === undefined) return
    this.cancelWatch = loop.schedule(due - loop.now, () => {
      this.cancelWatch = undefined
      if (this.isClosedByClient || (this.isReachable && !this.isDead)) return
      const isSilent = loop.now >= this.heardAt + (this.keepAlive ?? 0) + keepAliveProbes
      const { unansweredSince } = this.toServer
      if (unansweredSince === undefined ? isSilent : loop.now - unansweredSince >= retransmissionTimeout) {
        this.onTimeout()
      } else this.watch()
    })
  }
}
