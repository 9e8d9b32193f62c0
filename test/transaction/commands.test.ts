/** The commands of an SQL text, distinguished by their first words. */
import { describe, expect, it } from "vitest"
import { commandsIn } from "../../src/internal/sql/commandScanner.js"

describe("commandsIn", () => {
  it.each([
    ["", []],
    [" ;; ; -- COMMIT", []],
    ["commit and chain; Begin", ["COMMIT AND CHAIN", "BEGIN"]],
    ["ROLLBACK WORK TO SAVEPOINT a", ["ROLLBACK WORK TO SAVEPOINT"]],
    ["/* COMMIT; /* nested */ ; */ SELECT 1", ["SELECT"]],
    ["-- COMMIT;\nCALL p()", ["CALL P"]],
    ["SELECT ';COMMIT'; COMMIT", ["SELECT", "COMMIT"]],
    ["SELECT 'it''s; COMMIT'", ["SELECT"]],
    ["SELECT 'a\\'; COMMIT", ["SELECT", "COMMIT"]],
    ["SELECT E'a\\'; COMMIT'; END", ["SELECT", "END"]],
    ['SELECT ";COMMIT", "a""; COMMIT"', ["SELECT"]],
    ["DO $$ BEGIN COMMIT; END $$; COMMIT", ["DO", "COMMIT"]],
    ["DO $a$ ; $$ ; $b$ ; $a$; ROLLBACK", ["DO", "ROLLBACK"]],
    ["SELECT $1; COMMIT", ["SELECT", "COMMIT"]],
    ["SELECT a$b$c; COMMIT", ["SELECT A$B$C", "COMMIT"]],
    ["ROLLBACK/**/TO/**/a", ["ROLLBACK TO A"]],
    ["(SELECT 1)", []],
    ["INSERT INTO café VALUES (1)", ["INSERT INTO CAFÉ VALUES"]],
    ["SELECT 'never closed; COMMIT", ["SELECT"]],
    ["/* never closed; COMMIT", []]
  ])("commandsIn reads %j", (text, commands) => {
    expect(commandsIn(text)).toEqual(commands)
  })

  it("commandsIn reads a long repetition of any delimiter without an error", () => {
    for (const piece of ["'", '"', "$", "$$", "$a$", "/*", "*/", "--", "E'\\", ";", "\\", "\u0000", "x'"]) {
      expect(() => commandsIn(piece.repeat(20_000))).not.toThrow()
    }
  })
})
