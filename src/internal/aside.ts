/**
 * A second socket to the server that a connection is on, for what cannot be said on the connection itself while it waits for an answer.
 */
import * as Net from "node:net"
import * as Tls from "node:tls"
import type { ServerConfig } from "../DatabaseConfig.js"
import { later } from "./later.js"
import { tlsOptions } from "./protocol/tls.js"
import * as wire from "./wire.js"

/** The very server that a connection is on: its name may lead elsewhere by now, and to resolve it takes time. */
export type Peer = { readonly path: string } | { readonly host: string; readonly port: number }

/** Where an open socket leads. */
export const peerOf = (server: ServerConfig, { remoteAddress, remotePort }: Net.Socket): Peer => {
  if (server.host.startsWith("/")) return { path: `${server.host}/.s.PGSQL.${server.port}` }
  return { host: remoteAddress ?? server.host, port: remotePort ?? server.port }
}

/** Opens a socket that is closed after `patience` ms at the latest, whatever the network does, and that keeps no process alive. */
const open = (peer: Peer, patience: number, connected: (socket: Net.Socket) => void): Net.Socket => {
  const socket = Net.connect(peer)
  const stop = later(patience, () => socket.destroy())
  socket.unref()
  socket.once("connect", () => connected(socket))
  socket.once("close", stop)
  // "close" follows, which is all that anybody needs to know
  socket.on("error", () => {})
  return socket
}

const agreed = "S".charCodeAt(0)

/** Asks whether the server takes TLS. It answers with one letter, before any login, also when it has no connection left to give. */
const askForTls = (socket: Net.Socket, answered: (yes: boolean) => void): void => {
  // more than the letter would be something that came without TLS and is to look as if it came with it
  socket.once("data", (answer) => answered(answer.length === 1 && answer[0] === agreed))
  socket.write(wire.sslRequest)
}

/**
 * Delivers a message, by TLS where the connection has it, and leaves it to the other side to hang up: a cancel that is hung up on too
 * early ends PgBouncer 1.18, and so everybody's connections. Nobody is told whether it arrived, only when it is over.
 */
export const deliver = (
  server: ServerConfig,
  peer: Peer,
  patience: number,
  message: Buffer,
  done: (() => void) | undefined
): void => {
  const { host, ssl } = server
  const socket = open(peer, patience, (socket) => {
    if (ssl === false) {
      socket.write(message)
      return void socket.resume()
    }
    askForTls(socket, (yes) => {
      // what is for TLS is not sent without it
      if (!yes) return void socket.destroy()
      const secure = Tls.connect({ ...tlsOptions(ssl, host), socket })
      secure.on("error", () => socket.destroy())
      secure.once("secureConnect", () => {
        secure.write(message)
        secure.resume()
      })
    })
  })
  if (done !== undefined) socket.once("close", done)
}

/** Whether the server says anything at all within `patience` ms. */
export const showsLife = (peer: Peer, patience: number, told: (yes: boolean) => void): void => {
  let heard = false
  const socket = open(peer, patience, () =>
    askForTls(socket, () => {
      heard = true
      socket.destroy()
    })
  )
  socket.once("close", () => told(heard))
}
