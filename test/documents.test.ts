/**
 * README and guides, compared with the code and with each other. `npm run check` compiles their
 * programs.
 */
import * as fs from "node:fs"
import * as path from "node:path"
import { fileURLToPath } from "node:url"
import { DatabaseError, Migrations } from "effect-db"
import { assert, describe, it } from "vitest"

const root = fileURLToPath(new URL("..", import.meta.url))
const guides = fs.readdirSync(path.join(root, "examples/guides")).map((file) => `examples/guides/${file}`)
const documents = ["README.md", "CHANGELOG.md", "examples/README.md", ...guides]
const read = (file: string): string => fs.readFileSync(path.join(root, file), "utf8")

/** Returns a section of a document: from a heading to the next one of the same level. */
const section = (file: string, heading: string): string => {
  const [, rest = ""] = read(file).split(`\n${heading}\n`)
  return rest.split(new RegExp(`^${heading.replace(/[^#].*/s, "")} `, "m"))[0] ?? ""
}

const tags = [
  ...Object.entries(DatabaseError).flatMap(([name, value]) =>
    typeof value === "function" && value.prototype instanceof Error ? [name] : []
  ),
  Migrations.MigrationFailed.name
]

/** Returns the anchors of a document's headings, as GitHub makes them. */
const anchors = (file: string): ReadonlyArray<string> =>
  [...read(file).matchAll(/^#+ (.*)$/gm)].map(([, heading = ""]) =>
    heading
      .toLowerCase()
      .replace(/[^\w\- ]/g, "")
      .replaceAll(" ", "-")
  )

describe("the documents", () => {
  it("errors.md states for every tag of an error when it occurs and what to do", () => {
    assert.isAbove(tags.length, 30)
    const rows = section("examples/guides/errors.md", "## Tags")
      .split("\n")
      .map((line) => line.split(/ +\| +|^\| +| +\|$/).filter((cell) => cell !== ""))
    assert.deepStrictEqual(
      tags.filter((tag) => rows.filter((cells) => cells.length === 3 && cells[0]?.includes(`\`${tag}\``)).length !== 1),
      []
    )
  })

  it("README.md has at most 14 kB, and no line over 120 characters outside of tables", () => {
    const readme = read("README.md")
    assert.isAtMost(Buffer.byteLength(readme), 14_000)
    assert.deepStrictEqual(
      readme.split("\n").filter((line) => line.length > 120 && !line.startsWith("|")),
      []
    )
  })

  it("README.md has one program and a link to more in each section of its tour", () => {
    const sections = section("README.md", "## Tour").split(/^### /m).slice(1)
    assert.isAbove(sections.length, 5)
    for (const text of sections) {
      assert.strictEqual(text.split("```ts").length, 2, text)
      assert.match(text, /\nMore: \[[^\]]+\]\(examples\/guides\/[^)]+\)(?:.|\n)*$/)
    }
  })

  it.each([
    ["ConnectFailed", DatabaseError.ConnectFailed.fields.reason.literals],
    ["PoolExhausted", DatabaseError.PoolExhausted.fields.reason.literals]
  ])("errors.md has every reason of %s in a table", (tag, reasons) => {
    const table = section("examples/guides/errors.md", `## Reasons of \`${tag}\``)
    assert.deepStrictEqual(
      reasons.filter((reason) => !table.includes(`\n| \`${reason}\` `)),
      []
    )
  })

  it("the index of the guides has a sentence for each guide", () => {
    const lines = read("examples/guides/README.md")
      .split("\n")
      .filter((line) => line.startsWith("- "))
    const linked = lines.map((line) => /^- \[[^\]]+\]\(([\w-]+\.md)\): .+\.$/.exec(line)?.[1])
    const files = guides.map((file) => path.basename(file)).filter((file) => file !== "README.md")
    assert.deepStrictEqual([...linked].sort(), files.sort())
  })

  it.each(documents)("%s links to files and headings that exist", (file) => {
    const links = [...read(file).matchAll(/\]\((?!https?:)([^)\s#]*)(?:#([^)\s]+))?\)/g)]
    const broken = links.flatMap(([, to = "", anchor]) => {
      const target = to === "" ? file : path.join(path.dirname(file), to)
      if (!fs.existsSync(path.join(root, target))) return [to]
      return anchor === undefined || anchors(target).includes(anchor) ? [] : [`${to}#${anchor}`]
    })
    assert.deepStrictEqual(broken, [])
  })

  it.each(documents)("%s has no blank line within a list", (file) => {
    const text = read(file).replace(/^```[\s\S]*?^```$/gm, "")
    assert.notMatch(text, /^- .*(?:\n {2}.*)*\n\n+- /m)
  })
})
