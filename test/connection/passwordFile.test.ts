/** The password file of a connection. */
import { execFileSync } from "node:child_process"
import * as fs from "node:fs"
import * as path from "node:path"
import { assert, it } from "@effect/vitest"
import * as Effect from "effect/Effect"
import * as Redacted from "effect/Redacted"
import { RetryPolicy } from "effect-db"
import { describe } from "vitest"
import { emptyFolder } from "../support/directory.js"
import { failure, taggedFailure } from "../support/failures.js"
import { given, holder, open, session } from "../support/providedCredentials.js"
import { anonymous, type Role } from "../support/roles.js"
import { terminateBackends } from "../support/server.js"

describe("the password file of a connection", () => {
  /** A folder for password files, and a database with a role whose password a test writes there. */
  const givenFile = Effect.gen(function* () {
    const { admin, a, b, name } = yield* given
    const folder = yield* emptyFolder
    const { hostname, port } = new URL(Redacted.value(admin))
    const server = { host: hostname, port: Number(port), database: name, username: a.name }
    const url = new URL(Redacted.value(anonymous(admin)))
    url.username = a.name
    const inFolder = (file: string) => path.join(folder, file)
    const passwordOf = ({ credentials: { password } }: Role) => (password === undefined ? "" : Redacted.value(password))
    return { a, admin, b, folder, inFolder, name, passwordOf, server, url: Redacted.make(url.href) }
  })

  it.scopedLive("a password file, for one server or for all without a password, is read for each connection", () =>
    Effect.gen(function* () {
      const { a, inFolder, name, passwordOf, server, url } = yield* givenFile
      const file = inFolder("password")
      for (const end of ["", "\n", "\r\n"]) {
        for (const options of [{ writer: { ...server, passwordFile: file } }, { writer: url, passwordFile: file }]) {
          yield* Effect.scoped(
            Effect.gen(function* () {
              fs.writeFileSync(file, passwordOf(a) + end)
              const { facts, sql } = yield* open(options)
              const release = yield* holder(sql)
              yield* a.rotate
              fs.writeFileSync(file, passwordOf(a) + end)
              const other = yield* session(sql)
              const [busy] = yield* release
              assert.notStrictEqual(other.pid, busy.pid)
              assert.deepStrictEqual(
                facts.flatMap(({ _tag }) => (_tag === "CredentialsRotated" || _tag === "ConnectFailed" ? [_tag] : [])),
                ["CredentialsRotated"]
              )
            })
          )
          yield* terminateBackends(name)
        }
      }
    })
  )

  it.scopedLive("a password file may be replaced by a move into its place, as Kubernetes does with links", () =>
    Effect.gen(function* () {
      const { a, folder, inFolder, name, passwordOf, server } = yield* givenFile
      const publish = (version: string) => {
        fs.mkdirSync(inFolder(version))
        fs.writeFileSync(path.join(inFolder(version), "password"), passwordOf(a))
        fs.symlinkSync(version, inFolder("..next"))
        fs.renameSync(inFolder("..next"), inFolder("..data"))
      }
      publish("..1")
      fs.symlinkSync(path.join("..data", "password"), inFolder("password"))
      const { sql } = yield* open({ writer: { ...server, passwordFile: inFolder("password") } })
      const first = yield* session(sql)
      yield* a.rotate
      publish("..2")
      fs.rmSync(path.join(folder, "..1"), { recursive: true })
      yield* terminateBackends(name)
      assert.notStrictEqual((yield* session(sql)).pid, first.pid)
    })
  )

  it.scopedLive("a password file that is missing, empty, too long or not regular fails a connect with the reason", () =>
    Effect.gen(function* () {
      const { a, inFolder, passwordOf, server } = yield* givenFile
      fs.writeFileSync(inFolder("empty"), "")
      fs.writeFileSync(inFolder("newline"), "\n")
      fs.writeFileSync(inFolder("long"), "x".repeat(100_000))
      fs.mkdirSync(inFolder("folder"))
      fs.symlinkSync("loop", inFolder("loop"))
      // no process writes to it
      execFileSync("mkfifo", [inFolder("pipe")])
      const cases = [
        ["missing", "ENOENT"],
        ["empty", "it is empty"],
        ["newline", "it is empty"],
        ["long", "it is longer than"],
        ["folder", "it is not a regular file"],
        ["loop", "ELOOP"],
        ["pipe", "it is not a regular file"],
        [path.join("empty", "password"), "ENOTDIR"]
      ] as const
      for (const [file, why] of cases) {
        const passwordFile = inFolder(file)
        const { sql } = yield* open({ writer: { ...server, passwordFile } })
        const error = yield* taggedFailure("ConnectFailed", sql`SELECT 1`.pipe(RetryPolicy.with(RetryPolicy.never)))
        assert.strictEqual(error.reason, "credentials")
        assert.include(error.message, `the password file ${passwordFile} cannot be used: ${why}`)
        if (file.includes("/")) continue
        // once the file is good, the next statement succeeds
        fs.rmSync(passwordFile, { recursive: true, force: true })
        fs.writeFileSync(passwordFile, passwordOf(a))
        assert.strictEqual((yield* session(sql)).user, a.name)
      }
    })
  )

  it.scopedLive("a password file that is a pipe without a writer does not block the read of other files", () =>
    Effect.gen(function* () {
      const { inFolder, server } = yield* givenFile
      execFileSync("mkfifo", [inFolder("pipe")])
      const { sql } = yield* open({ writer: { ...server, passwordFile: inFolder("pipe") } })
      // more reads than Node has threads for files, which are four
      yield* Effect.forEach(
        Array.from({ length: 10 }),
        () => failure(sql`SELECT 1`.pipe(RetryPolicy.with(RetryPolicy.never))),
        { concurrency: "unbounded" }
      )
      const text = yield* Effect.promise(() => fs.promises.readFile("/dev/null", "utf8"))
      assert.strictEqual(text, "")
    })
  )
})
