/** The check of messages alone: its result does not depend on where the bytes are cut. */
import { describe, expect, it } from "vitest"
import { MessageCheck } from "../../src/internal/protocol/messageCheck.js"
import * as talk from "../support/conversation.js"

const limits = { maxRowBytes: 65_536, maxNoticeBytes: 1024, maxStartupBytes: 4096, maxScramIterations: 4096 }

/**
 * Checks bytes that arrive in these pieces: returns the number of readable bytes, and the error in
 * the rest.
 */
const look = (pieces: ReadonlyArray<Buffer>) => {
  const check = new MessageCheck(limits)
  let sound = 0
  for (const piece of pieces) {
    sound += check.check(piece)
    if (check.violation !== undefined) return { sound, violation: check.violation.message }
  }
  return { sound, violation: undefined }
}

/** Returns bytes as a whole, cut once at each place, and cut at every place. */
const cuts = (bytes: Buffer): ReadonlyArray<ReadonlyArray<Buffer>> => [
  [bytes],
  ...Array.from({ length: bytes.length - 1 }, (_, i) => [bytes.subarray(0, i + 1), bytes.subarray(i + 1)]),
  Array.from(bytes, (_, i) => bytes.subarray(i, i + 1))
]

const login = Buffer.concat(talk.login)

/** One message of each kind that a server may send after its login. */
const kinds: Readonly<Record<string, Buffer>> = {
  "a row": talk.row(["one", null, "", "é"]),
  "a row without columns": talk.row([]),
  columns: talk.described(["id", "name"]),
  "no columns": talk.described([]),
  "an error": talk.refusal("no"),
  "a notice": talk.notice("so"),
  "a setting": talk.parameter("TimeZone", "UTC"),
  "a tag": talk.done("INSERT 0 1"),
  "a notification": talk.message("A", Buffer.from([0, 0, 0, 1]), Buffer.from("channel\0payload\0")),
  parameters: talk.message("t", Buffer.from([0, 1, 0, 0, 0, 23])),
  "a COPY to the server": talk.message("G", Buffer.from([0, 0, 1, 0, 0])),
  "a COPY to the client": talk.message("H", Buffer.from([1, 0, 2, 0, 1, 0, 1])),
  "a piece of a COPY": talk.message("d", Buffer.from("1\tone\n")),
  "an empty piece of a COPY": talk.message("d"),
  ...Object.fromEntries([..."123nsIc"].map((letter) => [`a message without a body (${letter})`, talk.message(letter)]))
}

describe("a check of messages", () => {
  it.each(Object.entries(kinds))("the check lets %s pass, wherever it is cut", (_, bytes) => {
    const all = Buffer.concat([login, bytes, talk.ready, bytes, talk.ready])
    for (const pieces of cuts(all)) expect(look(pieces)).toEqual({ sound: all.length, violation: undefined })
  })

  // a piece of a COPY may have any length
  it.each(Object.entries(kinds).filter(([, bytes]) => bytes.toString("latin1", 0, 1) !== "d"))(
    "the check finds %s that is longer or shorter than its structure, wherever it is cut",
    (_, bytes) => {
      const letter = bytes.toString("latin1", 0, 1)
      const body = bytes.subarray(5)
      const shorter = talk.message(letter, body.subarray(0, -1))
      const longer = talk.message(letter, body, Buffer.from([1]))
      for (const wrong of body.length === 0 ? [longer] : [shorter, longer]) {
        const before = Buffer.concat([login, talk.ready])
        const [whole, ...rest] = cuts(Buffer.concat([before, wrong, talk.ready])).map(look)
        expect(whole?.violation).toBeDefined()
        // the bytes before the wrong message may be read, and nothing after it
        expect(whole?.sound).toBe(before.length)
        for (const one of rest) {
          expect(one.violation).toBe(whole?.violation)
          expect(one.sound).toBeLessThan(before.length + wrong.length)
        }
      }
    }
  )

  it("a message that is too long fails at its header, before any of its body has arrived", () => {
    for (const [letter, length] of [
      ["D", 65_537],
      ["d", 65_537],
      ["N", 1025],
      ["E", 1025],
      ["T", 0x7fffffff],
      ["C", 0xffffffff],
      ["Z", 6]
    ] as const) {
      const header = Buffer.alloc(5)
      header.write(letter, "latin1")
      header.writeUInt32BE(length, 1)
      for (const pieces of cuts(Buffer.concat([login, header]))) {
        expect(look(pieces).violation).toBeDefined()
      }
    }
  })

  it("a first message that belongs to no login is reported as coming from no PostgreSQL server", () => {
    const http = Buffer.from("HTTP/1.1 400 Bad Request\r\n\r\n")
    for (const pieces of cuts(http)) {
      expect(look(pieces).violation).toBe(
        "the server broke PostgreSQL's protocol: it began with HTTP, so it is no PostgreSQL server"
      )
    }
    for (const bytes of [Buffer.from("SSH-2.0-OpenSSH_9.2\r\n"), talk.row(["1"])]) {
      for (const pieces of cuts(bytes)) {
        expect(look(pieces).violation).toMatch(/it began with .*, so it is probably no PostgreSQL server$/)
      }
    }
    // after the first message of a login the server speaks the protocol
    for (const pieces of cuts(Buffer.concat([talk.login[0] ?? http, http]))) {
      expect(look(pieces).violation).not.toContain("no PostgreSQL server")
    }
  })

  it("the notices of one exchange are counted together, and anew in the next", () => {
    const some = Array.from({ length: 10 }, () => talk.notice("so"))
    expect(look([login, ...some, talk.ready, ...some, talk.ready]).violation).toBeUndefined()
    expect(look([login, ...some, ...some, ...some, talk.ready]).violation).toContain("maxNoticeBytes")
  })

  it("a row that arrives in pieces passes", () => {
    const row = talk.row(["x".repeat(30_000), null, "y".repeat(20_000)])
    const all = Buffer.concat([login, row, talk.ready])
    for (const size of [1, 3, 1000, 40_000]) {
      const pieces = Array.from({ length: Math.ceil(all.length / size) }, (_, i) =>
        all.subarray(i * size, (i + 1) * size)
      )
      expect(look(pieces)).toEqual({ sound: all.length, violation: undefined })
    }
  })
})
