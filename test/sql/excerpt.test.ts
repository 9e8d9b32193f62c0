import { assert, describe, it } from "vitest"
import { statementLines, withoutPasswords } from "../../src/internal/sql/excerpt.js"

describe("the excerpt of a failed statement", () => {
  it("the mark stays below the position of the error when a password has characters beyond 16 bits", () => {
    const sql = "CREATE ROLE a PASSWORD '\u{1f511}\u{1f511}' nonsense"
    const position = [...sql.slice(0, sql.indexOf("nonsense"))].length + 1
    const [, line = "", mark = ""] = statementLines({ sql: withoutPasswords(sql), position }).split("\n")
    assert.include(line, "PASSWORD '**' nonsense")
    assert.strictEqual(mark.indexOf("^"), line.indexOf("nonsense"))
  })
})
