/**
 * Replaces time, timers and random numbers of the process by those of the simulation. It must be
 * loaded before the program under test, whose modules may keep what they find.
 */
import crypto from "node:crypto"
import { syncBuiltinESMExports } from "node:module"
import type { Event } from "./eventQueue.js"
import { epoch, type ImmediateEntry, loop } from "./loop.js"
import { Random } from "./random.js"

/** The functions of the real process, for the driver of the loop. */
export const real = {
  setImmediate: globalThis.setImmediate,
  /** Returns the real time in ms. */
  now: performance.now.bind(performance),
  cpuUsage: process.cpuUsage.bind(process)
}

// Node creates these streams at their first use, as sockets if they are pipes
void process.stdout
void process.stderr

let random = new Random("unseeded")

/** Seeds the random numbers of the program under test. */
export const seedGlobals = (of: Random): void => {
  random = of
}

type Callback = (...args: ReadonlyArray<unknown>) => void

/** The longest delay of a timer of Node. */
const longestTimer = 2_147_483_647

/** Timer with the methods of Node's timers. */
class VirtualTimer {
  private event: Event | undefined = undefined
  private isRef = true

  constructor(
    private readonly delay: number,
    private readonly isRepeated: boolean,
    private readonly callback: () => void
  ) {
    this.start()
  }

  private start(): void {
    this.event = loop.setTimer(this.delay, () => {
      if (this.isRepeated) this.start()
      this.callback()
    })
  }

  clear(): void {
    if (this.event !== undefined) loop.timers.cancel(this.event)
    this.event = undefined
  }

  close(): this {
    this.clear()
    return this
  }

  refresh(): this {
    this.clear()
    this.start()
    return this
  }

  ref(): this {
    this.isRef = true
    return this
  }

  unref(): this {
    this.isRef = false
    return this
  }

  hasRef(): boolean {
    return this.isRef
  }

  [Symbol.dispose](): void {
    this.clear()
  }
}

/** Node rounds delays down to whole milliseconds, at least 1. */
const delayOf = (millis: unknown): number => {
  const delay = Number(millis)
  return delay >= 1 && delay <= longestTimer ? Math.trunc(delay) : 1
}

const setTimer =
  (isRepeated: boolean) =>
  (callback: Callback, millis?: unknown, ...args: ReadonlyArray<unknown>) =>
    new VirtualTimer(delayOf(millis), isRepeated, () => callback(...args))

const clearTimer = (timer: unknown): void => {
  if (timer instanceof VirtualTimer) timer.clear()
}

/** Immediate callback with the methods of Node's. */
class VirtualImmediate {
  readonly entry: ImmediateEntry

  constructor(callback: () => void) {
    this.entry = loop.addImmediate(callback)
  }

  ref(): this {
    return this
  }

  unref(): this {
    return this
  }

  hasRef(): boolean {
    return true
  }

  [Symbol.dispose](): void {
    this.entry.run = undefined
  }
}

class VirtualDate extends Date {
  constructor(...given: ReadonlyArray<unknown>) {
    // the cast: the constructor of Date is overloaded
    super(...((given.length === 0 ? [loop.wallTime()] : given) as [number]))
  }

  static override now(): number {
    return Math.floor(loop.wallTime())
  }
}

const hex = (digits: number): string => {
  let text = ""
  while (text.length < digits) text += Math.floor(random.next() * 16).toString(16)
  return text
}

const randomUUID = () => `${hex(8)}-${hex(4)}-4${hex(3)}-8${hex(3)}-${hex(12)}`

const hrtime = Object.assign(
  () => {
    const seconds = Math.floor(loop.now / 1000)
    return [seconds, Math.floor((loop.now - seconds * 1000) * 1e6)]
  },
  { bigint: () => BigInt(Math.floor(loop.now * 1e6)) }
)

/** Replaces the globals of the process. */
const replaceGlobals = (): void => {
  Object.assign(globalThis, {
    setTimeout: setTimer(false),
    setInterval: setTimer(true),
    clearTimeout: clearTimer,
    clearInterval: clearTimer,
    setImmediate: (callback: Callback, ...args: ReadonlyArray<unknown>) =>
      new VirtualImmediate(() => callback(...args)),
    clearImmediate: (pending: unknown) => {
      if (pending instanceof VirtualImmediate) pending.entry.run = undefined
    },
    Date: VirtualDate
  })
  Object.defineProperties(performance, {
    now: { value: () => loop.now },
    timeOrigin: { value: epoch }
  })
  Object.assign(process, { hrtime })
  Math.random = () => random.next()
  Object.assign(crypto, { randomUUID })
  syncBuiltinESMExports()
}

replaceGlobals()
