/** Shared parts of the examples with a server: the address that they listen on, and the requests that they send to themselves with `--once`. */
import { once } from "node:events"
import type { Server } from "node:http"
import type { AddressInfo } from "node:net"

const portOf = (text: string): number => {
  if (/^\d{1,5}$/.test(text) && Number(text) < 65_536) return Number(text)
  console.error(`error: PORT=${text} is not a port: set a number from 0 to 65535; 0 picks a free one`)
  process.exit(1)
}

/** A free port of this machine alone, unless the settings say otherwise. */
export const port = portOf(process.env.PORT || "0")
export const host = process.env.HOST || "127.0.0.1"
export const isOnce = process.argv.includes("--once")

/** The cookie of the last response that had one. */
let cookie = ""

const ask = async (url: string, method: string, path: string, body?: object): Promise<void> => {
  const init = body === undefined ? {} : { body: JSON.stringify(body) }
  const headers = { cookie, "content-type": "application/json" }
  const response = await fetch(url + path, { method, headers, ...init })
  cookie = response.headers.getSetCookie()[0]?.split(";")[0] ?? cookie
  if (response.status === 503) process.exitCode = 1 // there is no database
  console.log(`${method} ${path} ${response.status} ${(await response.text()).split("\n")[0]}`)
}

/** Adds a todo, adds one and fails, and looks at what is stored. */
const askAll = async (url: string): Promise<void> => {
  await ask(url, "POST", "/todos", { title: "milk" })
  await ask(url, "POST", "/todos/broken", { title: "eggs" })
  await ask(url, "GET", "/todos")
}

/** Serves until the signal comes, or with `--once` until the requests are answered. */
export const serveUntil = async (signal: AbortSignal, url: string): Promise<void> => {
  console.log(`serving at ${url}, try: curl --json '{"title":"bread"}' ${url}/todos`)
  if (isOnce) await askAll(url)
  else if (!signal.aborted) await once(signal, "abort")
}

/** The address of a server that is listening. */
export const listening = async (server: Server): Promise<string> => {
  if (!server.listening) await once(server, "listening")
  // a server that listens on a port has such an address
  return `http://localhost:${(server.address() as AddressInfo).port}`
}

/** Closes the connections of requests that have no answer after 5 seconds: their work is rolled back. */
export const hurry = (server: Server): void => void setTimeout(() => server.closeAllConnections(), 5000).unref()

/** Takes no more requests, and waits for those that are there. */
export const closed = async (server: Server): Promise<void> => {
  const end = new Promise((resolve) => server.close(resolve))
  server.closeIdleConnections()
  hurry(server)
  await end
}
