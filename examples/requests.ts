/** Shared parts of the examples with a server: its address, and the requests that it sends to itself with `--once`. */
import { once } from "node:events"
import type { Server } from "node:http"
import type { AddressInfo } from "node:net"

const portOf = (text: string): number => {
  if (/^\d{1,5}$/.test(text) && Number(text) < 65_536) return Number(text)
  console.error(`error: PORT=${text} is not a port: set a number from 0 to 65535; 0 picks a free one`)
  process.exit(1)
}

/** The address to listen on: by default a free port of the loopback address. */
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
  if (response.status === 503) process.exitCode = 1 // the database is unavailable
  console.log(`${method} ${path} ${response.status} ${(await response.text()).split("\n")[0]}`)
}

/** Adds a todo, sends a request that adds a todo and fails, and lists the stored todos. */
const askAll = async (url: string): Promise<void> => {
  await ask(url, "POST", "/todos", { title: "milk" })
  await ask(url, "POST", "/todos/broken", { title: "eggs" })
  await ask(url, "GET", "/todos")
}

/** Serves until the signal aborts, or with `--once` until the requests are answered. */
export const serveUntil = async (signal: AbortSignal, url: string): Promise<void> => {
  console.log(`serving at ${url}, try: curl --json '{"title":"bread"}' ${url}/todos`)
  if (isOnce) await askAll(url)
  else if (!signal.aborted) await once(signal, "abort")
}

/** Waits until a server listens, and returns its URL. */
export const listening = async (server: Server): Promise<string> => {
  if (!server.listening) await once(server, "listening")
  // a server that listens on a port has such an address
  return `http://localhost:${(server.address() as AddressInfo).port}`
}

/** Closes all connections after 5 seconds: the work of requests without an answer is rolled back. */
export const hurry = (server: Server): void => void setTimeout(() => server.closeAllConnections(), 5000).unref()

/** Stops accepting requests, and waits for the answers to the requests in progress. */
export const closed = async (server: Server): Promise<void> => {
  const end = new Promise((resolve) => server.close(resolve))
  server.closeIdleConnections()
  hurry(server)
  await end
}
