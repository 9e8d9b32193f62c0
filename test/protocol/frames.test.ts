/** A server that violates the protocol: its client fails in time, and goes on. */
import { assert, it } from "@effect/vitest"
import * as Effect from "effect/Effect"
import * as Schema from "effect/Schema"
import { DatabaseError } from "effect-db"
import { describe } from "vitest"
import { behind } from "../support/behind.js"
import { startChild } from "../support/child.js"
import * as talk from "../support/conversation.js"
import { Db, insert, stored } from "../support/databases.js"
import { answers, type Message } from "../support/proxy.js"
import { makeSpeaker } from "../support/speaker.js"

const Line = Schema.parseJson(
  Schema.Struct({
    n: Schema.optional(Schema.Number),
    tag: Schema.optional(Schema.String),
    detail: Schema.optional(Schema.String),
    message: Schema.optional(Schema.String),
    rows: Schema.optional(Schema.Unknown),
    grown: Schema.optional(Schema.Number)
  })
)

/** Runs a client of conversations in a process of its own, which is killed if it does not end. */
const listen = (conversations: (n: number) => talk.Conversation, count: number, concurrency: number) =>
  Effect.gen(function* () {
    const url = yield* makeSpeaker((user) => conversations(Number(user.replace("case_", ""))))
    const child = yield* startChild("listener", ["0", String(count), String(concurrency)], url)
    const { code, lines, stderr } = yield* child.ended
    return { code, lines: lines.map((line) => Schema.decodeUnknownSync(Line)(line)), stderr }
  }).pipe(Effect.scoped)

const right: talk.Conversation = {
  login: Buffer.concat(talk.login),
  answer: Buffer.concat(talk.answer),
  isGood: true,
  piece: 65_536,
  hangsUp: false
}

const hex = (text: string): Buffer => Buffer.from(text.replaceAll(" ", ""), "hex")
const after = (count: number, messages: ReadonlyArray<Buffer>, ...rest: ReadonlyArray<Buffer>): Buffer =>
  Buffer.concat([...messages.slice(0, count), ...rest])

/** Messages that are wrong at any time. */
const always: Readonly<Record<string, Buffer>> = {
  "an error without a body": hex("45 00 00 00 04"),
  "a notice without a body": hex("4e 00 00 00 04"),
  "an error whose field has no end": talk.message("E", Buffer.from("SERROR")),
  "an error without an end": talk.message("E", Buffer.from("SERROR\0")),
  "a notice with more than its end": talk.message("N", Buffer.from("SNOTICE\0\0more")),
  "a reported setting without a value": talk.message("S", Buffer.from("name\0")),
  "a message of an unknown kind": talk.message("y"),
  "a message of no length": hex("53 00 00 00 00"),
  "a message that announces two gigabytes": hex("53 7f ff ff ff"),
  "more notices than are allowed": Buffer.concat(Array.from({ length: 400 }, () => talk.notice("x".repeat(100)))),
  "more settings than are allowed": Buffer.concat(
    Array.from({ length: 400 }, (_, i) => talk.parameter(`setting ${i}`, "x".repeat(100)))
  )
}

const atLogin: Readonly<Record<string, Buffer>> = {
  ...always,
  "readiness before a login": talk.ready,
  "a key before a login": talk.key,
  "a row in a login": after(1, talk.login, talk.row(["1"])),
  "a key of another size": after(1, talk.login, talk.message("K", Buffer.alloc(40))),
  "a list of mechanisms without an end": talk.authentication(10, Buffer.from("SCRAM-SHA-256\0")),
  "a salt of another size": talk.authentication(5, Buffer.alloc(3)),
  "words of another protocol": Buffer.from("HTTP/1.1 400 Bad Request\r\n\r\n"),
  "notices without end": Buffer.concat(Array.from({ length: 5000 }, () => talk.notice("wait")))
}

const toStatement: Readonly<Record<string, Buffer>> = {
  ...always,
  "columns that run past their message": after(2, talk.answer, talk.message("T", hex("00 05"), Buffer.from("n\0"))),
  "a number of columns below zero": after(2, talk.answer, talk.message("T", hex("ff ff"))),
  "a row that runs into the next message": after(
    3,
    talk.answer,
    talk.message("D", hex("00 01 00 00 00 05 31")),
    talk.ready
  ),
  "a row with a size below -1": after(3, talk.answer, talk.message("D", hex("00 01 ff ff ff fe")), talk.ready),
  "a row with more than its columns": after(3, talk.answer, talk.message("D", hex("00 00 31 31")), talk.ready),
  "a row with fewer columns than were described": after(
    3,
    talk.answer,
    talk.row([]),
    talk.done("SELECT 1"),
    talk.ready
  ),
  "a row that was not described": after(2, talk.answer, talk.row(["1"]), talk.done("SELECT 1"), talk.ready),
  "a row larger than is allowed": after(3, talk.answer, talk.row(["x".repeat(40_000)])),
  "a row that announces a gigabyte": after(3, talk.answer, hex("44 40 00 00 00 00 01")),
  "a tag without an end": after(4, talk.answer, talk.message("C", Buffer.from("SELECT 1")), talk.ready),
  "an unknown status": after(5, talk.answer, talk.message("Z", Buffer.from("X"))),
  "a notification without a payload": after(2, talk.answer, talk.message("A", hex("00 00 00 01 61 00"))),
  "readiness without an answer": talk.ready,
  "readiness before the answer": after(3, talk.answer, talk.ready),
  "a login after the login": after(2, talk.answer, talk.authentication(3)),
  "a key after the login": after(2, talk.answer, talk.key),
  "the start of a COPY with too few columns": talk.message("G", hex("00 00 05 00 00")),
  "the start of a replication": talk.message("W", hex("00 00 00"))
}

const cases = (
  some: Readonly<Record<string, Buffer>>,
  of: (bytes: Buffer, piece: number) => talk.Conversation
): ReadonlyArray<readonly [name: string, conversation: talk.Conversation]> =>
  Object.entries(some).flatMap(([name, bytes]) =>
    [65_536, 1].map((piece) => [`${name}, in ${piece === 1 ? "pieces" : "one piece"}`, of(bytes, piece)] as const)
  )

const ends = (all: ReadonlyArray<readonly [name: string, conversation: talk.Conversation]>, expected: string) =>
  Effect.gen(function* () {
    const { code, lines, stderr } = yield* listen((n) => all[n]?.[1] ?? right, all.length + 1, 8)
    assert.strictEqual(code, 0, stderr)
    const got = lines.flatMap(({ detail, message, n, tag }) =>
      n === undefined || n >= all.length
        ? []
        : [`${all[n]?.[0]}: ${tag} ${detail}${message?.includes("protocol") ? "" : message}`]
    )
    assert.deepStrictEqual(got.sort(), all.map(([name]) => `${name}: ${expected}`).sort())
    // a correct conversation, in the same process, after them
    assert.deepStrictEqual(lines.find(({ n }) => n === all.length)?.rows, [{ n: "1" }])
  })

describe("malformed bytes", () => {
  it.scopedLive("malformed messages at login fail with ConnectFailed, and the process goes on", () =>
    ends(
      cases(atLogin, (login, piece) => ({ ...right, login, piece })),
      "ConnectFailed protocol"
    )
  )

  it.scopedLive("malformed answers to a statement fail with Disconnected, in doubt, and the process goes on", () =>
    ends(
      cases(toStatement, (answer, piece) => ({ ...right, answer, piece })),
      "Disconnected inDoubt"
    )
  )

  it.scopedLive("a malformed message after an answer does not undo the answer", () =>
    Effect.gen(function* () {
      const answer = Buffer.concat([right.answer, hex("45 00 00 00 04")])
      const { lines } = yield* listen(() => ({ ...right, answer }), 1, 1)
      assert.deepStrictEqual(lines[0]?.rows, [{ n: "1" }])
    })
  )
})

/** Options with which a retry ends before the test times out. */
const brief = { acquireTimeout: "5 seconds" } as const

const isReady = ({ from, type }: Message) => from === "server" && type === "Z"

describe("a malformed answer", () => {
  it.scopedLive("a malformed answer in a transaction fails it with Disconnected, undone", () =>
    behind(brief, (proxy) =>
      Effect.gen(function* () {
        const body = Effect.gen(function* () {
          yield* insert("a")
          yield* proxy.when(answers("INSERT"), "spoil")
          yield* insert("b")
        })
        const error = yield* body.pipe(Db.withTransaction(), DatabaseError.refine, Effect.flip)
        assert.strictEqual(error._tag === "Disconnected" && error.outcome, "undone")
        assert.include(error.message, "protocol")
        assert.deepStrictEqual(yield* stored, [])
        yield* insert("c")
        assert.deepStrictEqual(yield* stored, ["c"])
      })
    )
  )

  it.scopedLive("a malformed message leaves a COMMIT in doubt unless the COMMIT's tag has arrived before", () =>
    behind({ ...brief, outcome: "unknown" }, (proxy) =>
      Effect.gen(function* () {
        yield* proxy.when(answers("COMMIT"), "spoil")
        const error = yield* insert("a").pipe(Db.withTransaction(), DatabaseError.refine, Effect.flip)
        assert.strictEqual(error._tag, "CommitOutcomeUnknown")
        assert.deepStrictEqual(yield* stored, ["a"])

        let isCommitted = false
        const note = (message: Message) => {
          if (answers("COMMIT")(message)) isCommitted = true
          return isCommitted && isReady(message)
        }
        yield* proxy.when(note, "spoil")
        yield* insert("b").pipe(Db.withTransaction())
        assert.deepStrictEqual(yield* stored, ["a", "b"])
      })
    )
  )

  it.scopedLive(
    "a malformed message leaves an autocommit statement in doubt, and the next one has another connection",
    () =>
      behind(brief, (proxy) =>
        Effect.gen(function* () {
          const spoiled = yield* proxy.when((message) => isReady(message) && proxy.roundTrips > 0, "spoil")
          const error = yield* insert("a").pipe(Effect.zipRight(insert("b")), DatabaseError.refine, Effect.flip)
          yield* spoiled
          assert.strictEqual(error._tag === "Disconnected" && error.outcome, "inDoubt")
          yield* insert("c")
          assert.include(yield* stored, "c")
        })
      )
  )
})

/** The number of conversations; the 10,000 of `EFFECT_DB_CHAOS=full` take some minutes. */
const conversations = process.env.EFFECT_DB_CHAOS === "full" ? 10_000 : 1000

describe("a fuzzed server", () => {
  it.scopedLive(
    `${conversations} random conversations end in a typed failure or a right answer, 95 % in time, and keep no memory`,
    () =>
      Effect.gen(function* () {
        const { code, lines, stderr } = yield* listen(talk.conversation, conversations, 20)
        assert.strictEqual(code, 0, stderr)
        assert.strictEqual(lines.length, conversations + 1)
        const counts: Record<string, number> = {}
        for (const { grown, message, n, rows, tag } of lines) {
          if (grown !== undefined) {
            assert.isBelow(grown, 8_000_000)
            continue
          }
          const seed = n ?? -1
          const { answer, isGood, login } = talk.conversation(seed)
          counts[tag ?? "right"] = (counts[tag ?? "right"] ?? 0) + 1
          assert.notStrictEqual(tag, "defect", `${seed}: ${message}`)
          if (isGood || rows !== undefined) {
            assert.isTrue(talk.isLogin(login), `seed ${seed}`)
            assert.deepStrictEqual(rows, talk.readAnswer(answer), `seed ${seed}: ${message}`)
          }
        }
        // the share of each result, which changes with the generator
        assert.isAtLeast(counts.right ?? 0, 0.1 * conversations)
        assert.isAtLeast(counts.ConnectFailed ?? 0, 0.2 * conversations)
        assert.isAtLeast(counts.Disconnected ?? 0, 0.15 * conversations)
        assert.isAtMost(counts.deadline ?? 0, 0.05 * conversations)
      }),
    { timeout: 900_000 }
  )
})
