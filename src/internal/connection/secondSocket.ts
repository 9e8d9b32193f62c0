/**
 * A second socket to the server of a connection: for a cancel request, and for the check that the
 * server is alive. Neither can be sent on the connection itself while it awaits an answer.
 */

import type * as Net from "node:net"
import * as Tls from "node:tls"
import * as clock from "../concurrency/clock.js"
import * as messages from "../protocol/frontendMessages.js"
import { type SocketTarget, socketTo } from "../protocol/socket.js"
import { tlsOptions } from "../protocol/tlsOptions.js"
import { addressOf, type Destination, type Dial, intercepted } from "./destination.js"

/**
 * Target of a second socket: the server that the connection is on. It holds the address and not the
 * host name, because the name may lead to another server by now and its lookup takes time.
 */
export type SecondSocket = SocketTarget | { readonly dial: Dial }

/** Returns the target of a second socket, given the socket of the connection. */
export const secondSocket = (server: Destination, { remoteAddress, remotePort }: Net.Socket): SecondSocket => {
  if (server.dial !== undefined) return { dial: server.dial }
  const address = addressOf(server)
  return "path" in address ? address : { host: remoteAddress ?? address.host, port: remotePort ?? address.port }
}

/**
 * Opens a socket that is closed after `timeout` ms at the latest, and does not keep the process
 * alive. `onClosed` is called once.
 */
const open = (
  server: Destination,
  target: SecondSocket,
  timeout: number,
  onConnected: (socket: Net.Socket) => void,
  onClosed: () => void
): void => {
  if ("dial" in target)
    return dial(target.dial, timeout, (socket) => onConnected(intercepted(server, socket)), onClosed)
  const socket = intercepted(server, socketTo(target)).connect(0)
  socket.once("connect", () => onConnected(socket))
  closeAfter(timeout, socket, onClosed)
}

const dial = (dial: Dial, timeout: number, onConnected: (socket: Net.Socket) => void, onClosed: () => void): void => {
  const startedAt = clock.now()
  let isOver = false
  const end = () => {
    cancelTimeout()
    if (!isOver) onClosed()
    isOver = true
  }
  const cancelTimeout = clock.later(timeout, () => {
    cancelDial()
    end()
  })
  const cancelDial = dial((_, socket) => {
    if (isOver) return void socket?.destroy()
    if (socket === undefined) return end()
    cancelTimeout()
    closeAfter(timeout - (clock.now() - startedAt), socket, onClosed)
    onConnected(socket)
  })
}

const closeAfter = (timeout: number, socket: Net.Socket, onClosed: () => void): void => {
  const cancelTimeout = clock.later(timeout, () => socket.destroy())
  socket.unref()
  socket.once("close", () => {
    cancelTimeout()
    onClosed()
  })
  // "close" follows an error, and a second socket reports no reason
  socket.on("error", () => {})
}

const yes = "S".charCodeAt(0)

/**
 * Requests TLS. The server answers with one letter before any login, even if it accepts no more
 * connections.
 */
const requestTls = (socket: Net.Socket, callback: (isAccepted: boolean) => void): void => {
  // bytes after the letter were sent without TLS, but would be read as if TLS had secured them
  socket.once("data", (answer) => callback(answer.length === 1 && answer[0] === yes))
  socket.write(messages.sslRequest)
}

/** Begins TLS on a socket in the same way as the driver. */
const beginTls = (server: Destination, ssl: true | Tls.ConnectionOptions, socket: Net.Socket): Tls.TLSSocket => {
  const tlsSocket = Tls.connect({ ...tlsOptions(ssl, server.host, server), socket })
  tlsSocket.on("error", () => socket.destroy())
  return tlsSocket
}

/**
 * Sends a cancel request, with TLS if the connection has it, and waits for the server to close the
 * socket: PgBouncer 1.18 exits, with all its connections, if the client closes the socket of a
 * cancel request too early. `callback` is called when the socket is closed, with true if the server
 * has closed it after the message.
 */
export const sendCancel = (
  server: Destination,
  target: SecondSocket,
  timeout: number,
  message: Buffer,
  callback: (isReceived: boolean) => void
): void => {
  const { ssl } = server
  let isReceived = false
  const send = (socket: Net.Socket) => {
    socket.once("end", () => {
      isReceived = true
    })
    socket.write(message)
    socket.resume()
  }
  const sendWithTls = (ssl: true | Tls.ConnectionOptions, socket: Net.Socket) => {
    const tlsSocket = beginTls(server, ssl, socket)
    tlsSocket.once("secureConnect", () => send(tlsSocket))
  }
  open(
    server,
    target,
    timeout,
    (socket) => {
      if (ssl === false) return send(socket)
      if (server.isDirectTls) return sendWithTls(ssl, socket)
      requestTls(socket, (isAccepted) => {
        // without TLS, the key of the cancel request could be read on the network
        if (isAccepted) sendWithTls(ssl, socket)
        else socket.destroy()
      })
    },
    () => callback(isReceived)
  )
}

/** Checks if the server sends any answer within `timeout` ms. */
export const checkAlive = (
  server: Destination,
  target: SecondSocket,
  timeout: number,
  callback: (isAlive: boolean) => void
): void => {
  const { isDirectTls, ssl } = server
  let hasAnswered = false
  open(
    server,
    target,
    timeout,
    (socket) => {
      const onAnswer = () => {
        hasAnswered = true
        socket.destroy()
      }
      if (isDirectTls && ssl !== false) beginTls(server, ssl, socket).once("secureConnect", onAnswer)
      else requestTls(socket, onAnswer)
    },
    () => callback(hasAnswered)
  )
}
