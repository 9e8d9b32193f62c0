/**
 * The division of a stream of bytes into the messages of the protocol.
 */

/** The codes of the requests that a client sends in place of a startup message. */
const requests = { cancel: 80_877_102, tls: 80_877_103, gss: 80_877_104 } as const

const none = Buffer.alloc(0)

/** Checks if a first message asks for an encrypted connection. The server answers with one letter. */
export const asksForEncryption = (message: Buffer): boolean => {
  const code = message.length >= 8 ? message.readInt32BE(4) : 0
  return code === requests.tls || code === requests.gss
}

/** Checks if a first message is a cancel request. */
export const isCancelRequest = (message: Buffer): boolean =>
  message.length >= 8 && message.readInt32BE(4) === requests.cancel

/** Returns the letter of a message. */
export const letterOf = (message: Buffer): string => String.fromCharCode(message[0] ?? 0)

/** Reads the texts that begin at `from`, each of which ends with a zero byte. */
export const textsFrom = (message: Buffer, from: number, count: number): ReadonlyArray<string> => {
  const texts: Array<string> = []
  let start = from
  while (texts.length < count) {
    const end = message.indexOf(0, start)
    if (end < 0) break
    texts.push(message.toString("utf8", start, end))
    start = end + 1
  }
  return texts
}

/** Creates a message of a letter and texts that end with a zero byte, and of further bytes. */
export const makeMessage = (letter: string, texts: ReadonlyArray<string>, rest: Buffer = none): Buffer => {
  const body = Buffer.concat([...texts.map((text) => Buffer.from(`${text}\0`)), rest])
  const message = Buffer.alloc(5 + body.length)
  message.write(letter, 0, "latin1")
  message.writeInt32BE(4 + body.length, 1)
  body.copy(message, 5)
  return message
}

/** Splitter of the bytes of one direction of a connection. */
export class MessageSplitter {
  private rest: Buffer = none

  /**
   * Calls `onMessage` with each message that is complete. The first ones of a client have no letter.
   */
  split(chunk: Buffer, hasLetter: () => boolean, onMessage: (message: Buffer) => void): void {
    this.rest = this.rest.length === 0 ? chunk : Buffer.concat([this.rest, chunk])
    for (;;) {
      const head = hasLetter() ? 1 : 0
      if (this.rest.length < head + 4) return
      const size = head + this.rest.readInt32BE(head)
      if (this.rest.length < size) return
      const message = this.rest.subarray(0, size)
      this.rest = this.rest.subarray(size)
      onMessage(message)
    }
  }
}
