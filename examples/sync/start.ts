/**
 * The side that asks: it is blocked until it is answered.
 *
 * There are libraries for that, such as synckit; but they copy what is thrown, which an error of a database does not survive, and what has
 * been asked cannot be broken off.
 */
import { createContext, Script } from "node:vm"
import { MessageChannel, receiveMessageOnPort, Worker, workerData } from "node:worker_threads"
import { Data, Schema } from "effect"
import { type Answer, type Ask, answered, BlocksItself, ended, Failure, type Given, silent } from "./protocol.js"

/** Ctrl-C: the call has been broken off, and is rolled back; or, where the one before could not be, it has not been made. */
export class Interrupted extends Data.TaggedError("Interrupted") {
  override readonly message = "interrupted by Ctrl-C"
}

class ThreadEnded extends Data.TaggedError("ThreadEnded") {
  override readonly message = "the thread that has the databases has ended"
}

// In JavaScript this is `new Worker(file)`: a thread has to be told how to read TypeScript. Who is blocked hears of no event, such as its end.
const code = (file: URL) => `
  const { bell, port } = require("node:worker_threads").workerData
  process.once("uncaughtExceptionMonitor", ({ message, name }) => port.postMessage({ failure: { message, name } }))
  process.once("exit", () => { Atomics.store(bell, 0, ${ended}); Atomics.notify(bell, 0) })
  import("tsx/esm/api").then(({ register }) => { register(); return import(${JSON.stringify(file.href)}) })`

// nor does it hear of a signal; but a script can be broken off by one
const waiting = new Script("wait()")

/** Starts the thread of a file, which ends with the program. What comes back asks it. */
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
      // a call ends soon when it is cancelled; another Ctrl-C ends the program
      wait()
    }
    Atomics.compareExchange(given.bell, 0, answered, silent)
    const answer: Answer | undefined = receiveMessageOnPort(port)?.message
    if (answer === undefined) {
      // what it had open went with it
      if (ask.what === "close" || ask.what === "rollback") return undefined
      throw new ThreadEnded()
    }
    if ("value" in answer) return answer.value
    throw interrupted && isCall ? interruption() : Schema.decodeUnknownSync(Failure)(answer.failure)
  }
}
