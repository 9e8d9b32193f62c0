/**
 * The simulated network: hosts, and the TCP connections of the program under test to them. Bytes of
 * one direction keep their order. A packet that cannot arrive is sent again by TCP, so a partition
 * delays it, while a dead connection loses it.
 */
import { loop } from "../loop/loop.js"
import { Random } from "../loop/random.js"
import { Link } from "./link.js"

export { Link } from "./link.js"

/** Callbacks of a client socket. */
export interface ClientEnd {
  readonly onConnected: (link: Link) => void
  readonly onFailed: (code: string) => void
  readonly onData: (chunk: Buffer) => void
  readonly onEnd: () => void
  readonly onReset: (code: string) => void
}

/** Callbacks of the server's end of a connection. */
export interface ServerEnd {
  readonly onData: (chunk: Buffer) => void
  /** The client has ended its side, or has destroyed its socket. */
  readonly onEnd: () => void
  /** The host has lost its power, or has reset the connection. */
  readonly onReset: () => void
}

/** Host of the network. */
export interface Host {
  readonly address: string
  /** Accepts a connection; `undefined` while no process listens. */
  listen: ((link: Link) => ServerEnd) | undefined
  /** False while the host is without power. */
  isUp: boolean
  /** True while no packet passes between the program and the host. */
  isCut: boolean
  /** The time of a packet to the host or back, in ms. */
  latency: number
  /** The mean of a random part of that time, in ms. */
  jitter: number
}

/** The time after which a connect without an answer fails, in ms, as on Linux. */
const connectTimeout = 127_000

/** The pauses of repeated SYN packets, in ms. */
const synPause = 1000

/** Simulated network. */
export class Network {
  readonly hosts = new Map<string, Host>()
  /** The connections that one of the two sides has open. */
  readonly links = new Set<Link>()
  /** The number of connects in progress. */
  connecting = 0
  random = new Random("network")
  private nextPort = 0

  /** Forgets all hosts and connections of the episode before. */
  reset(random: Random): void {
    this.hosts.clear()
    this.links.clear()
    this.connecting = 0
    this.nextPort = 40_000
    this.random = random
  }

  addHost(address: string, latency: number, jitter: number): Host {
    const host: Host = { address, listen: undefined, isUp: true, isCut: false, latency, jitter }
    this.hosts.set(address, host)
    return host
  }

  /** Returns the time of one packet. */
  delayOf(host: Host): number {
    return host.latency + (host.jitter > 0 ? this.random.exponential(host.jitter) : 0)
  }

  /** Connects a client; the returned function cancels. */
  connect(address: string, port: number, client: ClientEnd): () => void {
    const host = this.hosts.get(address)
    if (host === undefined || port !== 5432) throw new Error(`the simulation has no server at ${address}:${port}`)
    const since = loop.now
    let cancel = () => {}
    let isOver = false
    this.connecting++
    const end = (act: () => void) => {
      if (isOver) return
      isOver = true
      this.connecting--
      act()
    }
    const attempt = (pause: number) => {
      cancel = loop.schedule(this.delayOf(host), () => {
        if (!host.isUp || host.isCut) {
          if (loop.now - since + pause > connectTimeout) return end(() => client.onFailed("ETIMEDOUT"))
          cancel = loop.schedule(pause, () => attempt(pause * 2))
          return
        }
        const { listen } = host
        const link = listen === undefined ? undefined : new Link(this, host, this.nextPort++, client)
        if (link !== undefined && listen !== undefined) {
          this.links.add(link)
          link.accept(listen(link))
        }
        cancel = loop.schedule(this.delayOf(host), () =>
          end(() => {
            if (link === undefined) return client.onFailed("ECONNREFUSED")
            client.onConnected(link)
          })
        )
        // an unused connection is closed again
        const cancelReply = cancel
        cancel = () => {
          cancelReply()
          link?.destroyByClient()
        }
      })
    }
    attempt(synPause)
    return () => end(() => cancel())
  }

  /** Cuts a host off from the program, or joins it again. */
  setCut(host: Host, isCut: boolean): void {
    host.isCut = isCut
    this.onChanged(host)
  }

  /** Switches the power of a host off or on. Its connections are not known any more when it is on. */
  setPower(host: Host, isUp: boolean): void {
    host.isUp = isUp
    if (!isUp) for (const link of this.linksOf(host)) link.forgetByServer()
    this.onChanged(host)
  }

  linksOf(host: Host): ReadonlyArray<Link> {
    return [...this.links].filter((link) => link.host === host)
  }

  private onChanged(host: Host): void {
    for (const link of this.linksOf(host)) link.onReachability()
  }
}
