/**
 * The trace of an episode: a line for each event that matters, its last part in memory, and a hash of
 * all lines. Two runs are the same if their hashes are.
 */
import { loop } from "../loop/loop.js"

/** The number of lines that are kept. */
const kept = 400

/** Trace of an episode. */
export class Trace {
  private readonly lines: Array<string> = []
  private next = 0
  private first = 0x811c9dc5
  private second = 0x1234_5678
  /** The number of lines so far. */
  count = 0
  /** Receives each line, if all are wanted. */
  onLine: ((line: string) => void) | undefined = undefined

  add(text: string): void {
    const line = `${loop.now.toFixed(3)} ${text}`
    for (let i = 0; i < line.length; i++) {
      const code = line.charCodeAt(i)
      this.first = Math.imul(this.first ^ code, 0x01000193)
      this.second = Math.imul(this.second ^ code, 0x5bd1e995) ^ (this.second >>> 15)
    }
    this.lines[this.next] = line
    this.next = (this.next + 1) % kept
    this.count++
    this.onLine?.(line)
  }

  get hash(): string {
    const hex = (value: number) => (value >>> 0).toString(16).padStart(8, "0")
    return `${hex(this.first)}${hex(this.second)}`
  }

  /** Returns the last lines, the oldest first. */
  last(count: number): ReadonlyArray<string> {
    const all = [...this.lines.slice(this.next), ...this.lines.slice(0, this.next)]
    return all.slice(-count)
  }
}
