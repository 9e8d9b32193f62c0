/**
 * The readers of a database, and their monitors. Those of a cluster change with its hosts.
 */

import type { ServerConfig } from "../../DatabaseConfig.js"
import type { ReaderMonitor } from "./readerMonitor.js"
import { isSameEndpoint } from "./sameEndpoint.js"
import type { Server } from "./server.js"

/** Reader, with its monitor if it has one. */
export interface Reader {
  readonly server: Server
  readonly monitor: ReaderMonitor | undefined
}

/** Function that closes a part of a database, and calls back when its sockets are closed. */
export type Close = (onClosed: () => void) => void

/** Readers of one database. */
export class Readers {
  private current: ReadonlyArray<Reader>
  /** The servers of {@link current}, for the choice of each read. */
  servers: ReadonlyArray<Server>
  /** The readers that were removed, until their connections are closed. */
  readonly leaving = new Set<Server>()
  private isMonitoring = false

  constructor(
    configs: ReadonlyArray<ServerConfig>,
    private readonly make: (config: ServerConfig) => Reader
  ) {
    this.current = configs.map(make)
    this.servers = this.current.map(({ server }) => server)
  }

  /** Starts the monitors, if they are off. */
  startMonitors(): void {
    if (this.isMonitoring) return
    this.isMonitoring = true
    for (const { monitor } of this.current) monitor?.start()
  }

  onWriterChanged(): void {
    for (const { monitor, server } of this.current) {
      monitor?.onWriterChanged()
      // the former writer of a cluster may be a reader from now on
      server.reads.warm()
    }
  }

  /** Sets the readers; returns those that are new, and those that are used no longer. */
  set(configs: ReadonlyArray<ServerConfig>): {
    readonly added: ReadonlyArray<Server>
    readonly removed: ReadonlyArray<Server>
  } {
    const removed = this.current.filter(
      ({ server }) => !configs.some((config) => isSameEndpoint(config, server.server))
    )
    const kept = this.current.filter((reader) => !removed.includes(reader))
    const added = configs
      .filter((config) => !kept.some(({ server }) => isSameEndpoint(config, server.server)))
      .map(this.make)
    this.current = [...kept, ...added]
    this.servers = this.current.map(({ server }) => server)
    for (const { monitor, server } of removed) {
      monitor?.close(() => {})
      server.replayWait?.close(() => {})
      this.leaving.add(server)
      server.remove(() => this.leaving.delete(server))
    }
    if (this.isMonitoring) for (const { monitor } of added) monitor?.start()
    return { added: added.map(({ server }) => server), removed: removed.map(({ server }) => server) }
  }

  /** Returns the parts to close: the pools, also those of removed readers, and the monitors. */
  closing(timeout: number): ReadonlyArray<Close> {
    const pools = [...this.servers, ...this.leaving].flatMap((server) => server.pools)
    return [
      ...pools.map(
        (pool): Close =>
          (onClosed) =>
            pool.close(timeout, onClosed)
      ),
      ...this.current
        .flatMap(({ monitor, server }) => [monitor, server.replayWait])
        .flatMap((part) => (part ? [(onClosed: () => void) => part.close(onClosed)] : []))
    ]
  }
}
