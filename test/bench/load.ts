/**
 * A worker that sends requests repeatedly on keep-alive connections. It runs beside the program
 * that is measured.
 */
import { connect } from "node:net"
import { isMainThread, parentPort, Worker, workerData } from "node:worker_threads"

interface Job {
  readonly port: number
  readonly connections: number
}

/** The result of a turn. */
interface Turn {
  /** The number of requests that were answered with a 2xx status. */
  readonly good: number
  /** The number of requests that were answered with another status. */
  readonly bad: number
  /** The duration of the turn. */
  readonly ms: number
}

export interface Load {
  readonly turn: (ms: number) => Promise<Turn>
  readonly stop: () => Promise<unknown>
}

/** Starts a worker that sends requests for `path` to a port of this machine, in turns of some ms. */
export const load = (job: Job & { readonly path: string }): Load => {
  const worker = new Worker(new URL(import.meta.url), { workerData: job })
  return {
    turn: (ms) =>
      new Promise((resolve, reject) => {
        worker.once("error", reject)
        worker.once("message", (turn: Turn) => {
          worker.off("error", reject)
          resolve(turn)
        })
        worker.postMessage(ms)
      }),
    stop: () => worker.terminate()
  }
}

if (!isMainThread) {
  // the worker is started above, with this data
  const { connections, path, port } = workerData as Job & { readonly path: string }
  const request = `POST ${path} HTTP/1.1\r\nhost: localhost\r\ncontent-length: 0\r\n\r\n`
  let until = 0
  let counts = { good: 0, bad: 0 }
  let running = 0
  let start = 0
  const sockets = Array.from({ length: connections }, () => {
    const socket = connect(port, "127.0.0.1").setNoDelay(true)
    let got = ""
    socket.on("close", () => {
      throw new Error("the server has closed a connection")
    })
    socket.setEncoding("latin1").on("data", (text: string) => {
      got += text
      const head = got.indexOf("\r\n\r\n")
      if (head < 0) return
      const length = Number(/content-length: (\d+)/i.exec(got)?.[1] ?? 0)
      if (got.length < head + 4 + length) return
      counts[got.startsWith("HTTP/1.1 2") ? "good" : "bad"]++
      got = ""
      if (performance.now() < until) socket.write(request)
      else if (--running === 0) parentPort?.postMessage({ ...counts, ms: performance.now() - start })
    })
    return socket
  })
  parentPort?.on("message", (ms: number) => {
    counts = { good: 0, bad: 0 }
    running = connections
    start = performance.now()
    until = start + ms
    for (const socket of sockets) socket.write(request)
  })
}
