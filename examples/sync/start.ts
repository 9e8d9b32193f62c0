/**
 * The thread that asks, and is blocked until it gets an answer.
 *
 * Libraries such as synckit are not used, because they cannot cancel a call, and copy errors without their class and fields.
 */
import { createContext, Script } from "node:vm"
import { MessageChannel, receiveMessageOnPort, Worker, workerData } from "node:worker_threads"
import { Data, Schema } from "effect"
import { type Answer, type Ask, answered, BlocksItself, ended, Failure, type Given, silent } from "./protocol.js"

/** Interruption by Ctrl-C: the call was cancelled and rolled back. If it could not be cancelled, the next call fails without being sent. */
export class Interrupted extends Data.TaggedError("Interrupted") {
  override readonly message = "interrupted by Ctrl-C"
}

class ThreadEnded extends Data.TaggedError("ThreadEnded") {
  override readonly message = "the thread that has the databases has ended"
}

// In JavaScript this is `new Worker(file)`: here the thread registers a loader for TypeScript. The blocked thread receives no events, so the
// end of this thread is reported by `bell`.
const code = (file: URL) => `
  const { bell, port } = require("node:worker_threads").workerData
  process.once("uncaughtExceptionMonitor", ({ message, name }) => port.postMessage({ failure: { message, name } }))
  process.once("exit", () => { Atomics.store(bell, 0, ${ended}); Atomics.notify(bell, 0) })
  import("tsx/esm/api").then(({ register }) => { register(); return import(${JSON.stringify(file.href)}) })`

// a blocked thread receives no signal, but `breakOnSigint` ends a script
const waiting = new Script("wait()")

/** Starts a thread that runs a file and ends with the program. The returned function sends a request and waits for the answer. */
export const start = (file: URL): ((ask: Ask) => unknown) => {
  if (workerData instanceof Object && "bell" in workerData) throw new BlocksItself()
  const { port1: port, port2 } = new MessageChannel()
  const given: Given = { bell: new Int32Array(new SharedArrayBuffer(4)), port: port2 }
  const thread = new Worker(code(file), { eval: true, execArgv: [], workerData: given, transferList: [port2] })
  // the next caller gets the failure
  thread.on("error", () => {}).unref()
  const wait = () => Atomics.wait(given.bell, 0, silent)
  const context = createContext({ wait })
  let asked = 0
  let interrupted = false
  const interruption = () => {
    interrupted = false
    return new Interrupted()
  }
  return (ask) => {
    const isCall = ask.what === "call"
    if (interrupted && isCall) throw interruption()
    port.postMessage(ask)
    asked++
    try {
      waiting.runInContext(context, { breakOnSigint: true })
    } catch {
      interrupted = true
      thread.postMessage(asked)
      // a cancelled call ends soon; another Ctrl-C ends the program
      wait()
    }
    Atomics.compareExchange(given.bell, 0, answered, silent)
    const answer: Answer | undefined = receiveMessageOnPort(port)?.message
    if (answer === undefined) {
      // the databases and the unit of work of the thread have ended with it
      if (ask.what === "close" || ask.what === "rollback") return undefined
      throw new ThreadEnded()
    }
    if ("value" in answer) return answer.value
    throw interrupted && isCall ? interruption() : Schema.decodeUnknownSync(Failure)(answer.failure)
  }
}
