/**
 * A second socket to the server that a connection is on, for what cannot be said on the connection itself while it waits for an answer.
 */

import * as Net from "node:net"
import * as Tls from "node:tls"
import * as clock from "../concurrency/clock.js"
import * as wire from "../protocol/messages.js"
import type { SocketTarget } from "../protocol/socket.js"
import { tlsOptions } from "../protocol/tlsOptions.js"
import { addressOf, type Destination, type DialOptions } from "./destination.js"

/** The very server that a connection is on: its name may lead elsewhere by now, and to resolve it takes time. */
export type SecondSocket = SocketTarget | { readonly dial: DialOptions }

/** Where an open socket leads. */
export const secondSocket = (server: Destination, { remoteAddress, remotePort }: Net.Socket): SecondSocket => {
  if (server.dial !== undefined) return { dial: server.dial }
  const address = addressOf(server)
  return "path" in address ? address : { host: remoteAddress ?? address.host, port: remotePort ?? address.port }
}

/**
 * Opens a socket that is closed after `patience` ms at the latest, whatever the network does, and that keeps no process alive. `closed` is
 * called once, when it is over.
 */
const open = (
  other: SecondSocket,
  patience: number,
  connected: (socket: Net.Socket) => void,
  closed: (() => void) | undefined
): void => {
  if ("dial" in other) return dial(other.dial, patience, connected, closed)
  const socket = Net.connect(other)
  socket.once("connect", () => connected(socket))
  watch(socket, patience, closed)
}

const dial = (
  dial: DialOptions,
  patience: number,
  connected: (socket: Net.Socket) => void,
  closed: (() => void) | undefined
): void => {
  const since = clock.now()
  let isOver = false
  const end = () => {
    stop()
    if (!isOver) closed?.()
    isOver = true
  }
  const stop = clock.later(patience, () => {
    giveUp()
    end()
  })
  const giveUp = dial((_, socket) => {
    if (isOver) return void socket?.destroy()
    if (socket === undefined) return end()
    stop()
    watch(socket, patience - (clock.now() - since), closed)
    connected(socket)
  })
}

const watch = (socket: Net.Socket, patience: number, closed: (() => void) | undefined): void => {
  const stop = clock.later(patience, () => socket.destroy())
  socket.unref()
  socket.once("close", () => {
    stop()
    closed?.()
  })
  // "close" follows, which is all that anybody needs to know
  socket.on("error", () => {})
}

const agreed = "S".charCodeAt(0)

/** Asks whether the server takes TLS. It answers with one letter, before any login, also when it has no connection left to give. */
const askForTls = (socket: Net.Socket, answered: (yes: boolean) => void): void => {
  // more than the letter would be something that came without TLS and is to look as if it came with it
  socket.once("data", (answer) => answered(answer.length === 1 && answer[0] === agreed))
  socket.write(wire.sslRequest)
}

/** Begins TLS on a socket as the driver does it. */
const secured = (server: Destination, ssl: true | Tls.ConnectionOptions, socket: Net.Socket): Tls.TLSSocket => {
  const secure = Tls.connect({ ...tlsOptions(ssl, server.host, server), socket })
  secure.on("error", () => socket.destroy())
  return secure
}

/**
 * Delivers a message, by TLS where the connection has it, and leaves it to the other side to hang up: a cancel that is hung up on too
 * early ends PgBouncer 1.18, and so everybody's connections. `done` is called when the socket is closed, and says whether the other side
 * has closed it after it had the message.
 */
export const sendCancel = (
  server: Destination,
  other: SecondSocket,
  patience: number,
  message: Buffer,
  done: (isTaken: boolean) => void
): void => {
  const { ssl } = server
  let isTaken = false
  const send = (socket: Net.Socket) => {
    socket.once("end", () => {
      isTaken = true
    })
    socket.write(message)
    socket.resume()
  }
  const sendSecured = (ssl: true | Tls.ConnectionOptions, socket: Net.Socket) => {
    const secure = secured(server, ssl, socket)
    secure.once("secureConnect", () => send(secure))
  }
  open(
    other,
    patience,
    (socket) => {
      if (ssl === false) return send(socket)
      if (server.isDirectTls) return sendSecured(ssl, socket)
      askForTls(socket, (yes) => {
        // what is for TLS is not sent without it
        if (yes) sendSecured(ssl, socket)
        else socket.destroy()
      })
    },
    () => done(isTaken)
  )
}

/** Whether the server says anything at all within `patience` ms. */
export const isAlive = (
  server: Destination,
  other: SecondSocket,
  patience: number,
  told: (yes: boolean) => void
): void => {
  const { isDirectTls, ssl } = server
  let heard = false
  open(
    other,
    patience,
    (socket) => {
      const lives = () => {
        heard = true
        socket.destroy()
      }
      if (isDirectTls && ssl !== false) secured(server, ssl, socket).once("secureConnect", lives)
      else askForTls(socket, lives)
    },
    () => told(heard)
  )
}
