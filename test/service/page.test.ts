/** The page at `/`, as a visitor uses it: real Chromium, the real service, its real servers. */
import { describe, expect, layer } from "@effect/vitest"
import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as Redacted from "effect/Redacted"
import type { BrowserContextOptions, Locator, Page } from "playwright-core"
import { emptyFolder } from "../support/directory.js"
import { makeProxy } from "../support/proxy.js"
import { query } from "../support/server.js"
import { Browser, hasChromium, inChromium, visit } from "./browser.js"
import * as Program from "./program.js"

class Service extends Context.Tag("test/PageService")<Service, { readonly url: string }>() {}

/** Starts the service on servers of its own. */
const embedded = Layer.scoped(
  Service,
  Effect.gen(function* () {
    const folder = yield* emptyFolder
    const program = yield* Program.start([], { TMPDIR: folder })
    const url = yield* program.url
    yield* program.line(/Ctrl-C stops/)
    return { url }
  })
)

const region = (page: Page, name: string) => page.getByRole("region", { name, exact: true })
const todos = (page: Page) => region(page, "Todos")
const airports = (page: Page) => region(page, "Airports")
const playground = (page: Page) => region(page, "Watch it go on")

const servers = (page: Page) => region(page, "Servers")
const serverRow = (page: Page, name: string | RegExp) =>
  page.getByRole("table", { name: "Servers", exact: true }).getByRole("row", { name })

const title = (page: Page) => page.getByRole("textbox", { name: "What is there to do?" })
const addButton = (page: Page) => page.getByRole("button", { name: "Add", exact: true })
const box = (page: Page, name: string) => page.getByRole("checkbox", { name, exact: true })
const deleteButton = (page: Page, name: string) => page.getByRole("button", { name: `Delete ${name}`, exact: true })
const searchField = (page: Page) => page.getByRole("searchbox", { name: /^Search by code/ })

/** Waits until an element has this text; a wait that times out fails the test. */
const says = (place: Locator, text: string | RegExp) => place.filter({ hasText: text }).first().waitFor()
const told = (place: Locator, text: string | RegExp) => says(place.getByRole("status"), text)
const warned = (place: Locator, text: string | RegExp) => says(place.getByRole("alert"), text)
/** Waits until an answer's line names its server. */
const signed = (place: Locator, text: RegExp) => place.getByText(text).first().waitFor()

const byPrimary = /^app · primary 127\.0\.0\.1:\d+ · transaction · [\d.,]+\sms$/
const readByPrimary = /^app · primary 127\.0\.0\.1:\d+ · no transaction · [\d.,]+\sms$/
const byReplica = /^app · replica 127\.0\.0\.1:\d+ · no transaction · [\d.,]+\sms$/

const add = async (page: Page, text: string) => {
  await title(page).fill(text)
  await addButton(page).click()
  await told(todos(page), `Added “${text}”.`)
}

const search = async (page: Page, text: string) => {
  await searchField(page).fill(text)
  await page.getByRole("button", { name: "Search", exact: true }).click()
}

const hasFocus = (locator: Locator) => locator.evaluate((element) => element === element.ownerDocument.activeElement)

/** Visits the page, and fails if the browser reports errors or warnings. */
const visiting = (body: (page: Page) => Promise<unknown>, options?: BrowserContextOptions) =>
  Effect.gen(function* () {
    const { complaints, page } = yield* visit((yield* Service).url, options)
    page.setDefaultTimeout(10_000)
    yield* Effect.promise(() => body(page))
    expect(complaints).toEqual([])
  })

describe.skipIf(!hasChromium)(`the page ${inChromium}`, () => {
  layer(Layer.merge(embedded, Browser.layer), { excludeTestServices: true })("the page on servers of its own", (it) => {
    describe("todos", () => {
      it.scoped("todos are added, ticked and deleted, each answer names its server, and a reload shows the same", () =>
        visiting(async (page) => {
          await todos(page).getByText("Nothing to do.").waitFor()
          await signed(todos(page), readByPrimary)
          await add(page, "Buy milk")
          await signed(todos(page), byPrimary)
          expect(await title(page).inputValue()).toBe("")
          await add(page, "Water the plants")
          await todos(page).getByText("2 open, 0 done").waitFor()

          await box(page, "Buy milk").check()
          await told(todos(page), "Done: “Buy milk”.")
          await signed(todos(page), byPrimary)
          await page.reload()
          await todos(page).getByText("1 open, 1 done").waitFor()
          expect(await box(page, "Buy milk").isChecked()).toBe(true)
          expect(await box(page, "Water the plants").isChecked()).toBe(false)

          await deleteButton(page, "Buy milk").click()
          await told(todos(page), "Deleted “Buy milk”.")
          await signed(todos(page), byPrimary)
          expect(await box(page, "Buy milk").count()).toBe(0)
          await deleteButton(page, "Water the plants").click()
          await todos(page).getByText("Nothing to do.").waitFor()
        })
      )

      it.scoped("todos leave an event each, which the second database shows", () =>
        visiting(async (page) => {
          await add(page, "Leave a trace")
          const trail = region(page, "Audit trail")
          await says(trail.getByRole("listitem").first(), "todo.created")
          await deleteButton(page, "Leave a trace").click()
          await says(trail.getByRole("listitem").first(), "todo.deleted")
          await signed(trail, /^audit · primary 127\.0\.0\.1:\d+ · no transaction · [\d.,]+\sms$/)
        })
      )

      it.scoped("todos may have any title, which is shown as it is, and never becomes HTML", () =>
        visiting(async (page) => {
          const odd = `<img src=x onerror="document.title='taken'"> & “quotes” \\ 🥛`
          await add(page, odd)
          await page.reload()
          await box(page, odd).waitFor()
          expect(await page.locator("main img").count()).toBe(0)
          expect(await page.title()).toBe("effect-db example service")
          await deleteButton(page, odd).click()
          await told(todos(page), /^Deleted/)
        })
      )

      it.scoped("todos without a title are refused beside the focused field, until something is typed", () =>
        visiting(async (page) => {
          await title(page).fill("   ")
          await addButton(page).click()
          await warned(todos(page), "Write what there is to do, then add it.")
          expect(await hasFocus(title(page))).toBe(true)
          expect(await title(page).getAttribute("aria-invalid")).toBe("true")
          await title(page).pressSequentially("a")
          expect(await todos(page).getByRole("alert").filter({ hasText: "Write" }).count()).toBe(0)
          expect(await title(page).getAttribute("aria-invalid")).toBe(null)
        })
      )

      it.scoped("todos with too long a title are refused, and the typed text stays", () =>
        visiting(async (page) => {
          const long = "x".repeat(201)
          await title(page).fill(long)
          await addButton(page).click()
          await warned(todos(page), "A title has at most 200 characters; this one has 201.")
          expect(await title(page).inputValue()).toBe(long)
        })
      )

      it.scoped("todos that are added before the list has arrived are in it once, as the last", () =>
        visiting(async (page) => {
          await add(page, "Older")
          let release = () => {}
          const held = new Promise<void>((resolve) => {
            release = resolve
          })
          const listed = new Promise<void>((resolve) =>
            page.route("**/todos", async (route) => {
              if (route.request().method() !== "GET") return route.fallback()
              const response = await route.fetch()
              resolve()
              await held
              await route.fulfill({ response })
            })
          )
          await page.reload({ waitUntil: "domcontentloaded" })
          await listed
          await add(page, "Newer")
          release()
          await box(page, "Older").waitFor()
          expect(await todos(page).getByRole("listitem").allInnerTexts()).toEqual([
            expect.stringContaining("Older"),
            expect.stringContaining("Newer")
          ])
          for (const name of ["Older", "Newer"]) {
            await deleteButton(page, name).click()
            await told(todos(page), `Deleted “${name}”.`)
          }
        })
      )

      it.scoped("todos whose answer was lost are there once when they are added again", () =>
        Effect.gen(function* () {
          const { page } = yield* visit((yield* Service).url)
          yield* Effect.promise(async () => {
            await page.route("**/todos", async (route) => {
              // the service applies it, and its answer is lost
              await route.fetch()
              await route.abort()
            })
            await title(page).fill("Once")
            await addButton(page).click()
            await warned(todos(page), "The service cannot be reached")
            expect(await title(page).inputValue()).toBe("Once")
            await page.unroute("**/todos")
            await todos(page).getByRole("button", { name: "Try again" }).click()
            await told(todos(page), "Added “Once”.")
            expect(await hasFocus(title(page))).toBe(true)
            await page.reload()
            await box(page, "Once").waitFor()
            expect(await box(page, "Once").count()).toBe(1)
            await deleteButton(page, "Once").click()
            await told(todos(page), "Deleted “Once”.")
          })
        })
      )
    })

    describe("airports", () => {
      it.scoped("airports are searched and paged on the replica, and a reload shows the same search and page", () =>
        visiting(async (page) => {
          await told(airports(page), "3,376 airports, page 1 of 338.")
          await signed(airports(page), byReplica)
          await search(page, "lake")
          await told(airports(page), "58 airports, page 1 of 6.")
          const table = page.getByRole("table", { name: "Airports" })
          await table.getByRole("row", { name: "00V Meadow Lake Colorado Springs, CO, USA" }).waitFor()
          for (const name of ["Code", "Airport", "Place"]) await table.getByRole("columnheader", { name }).waitFor()
          expect(await table.getByRole("rowheader").count()).toBe(10)

          const pages = page.getByRole("navigation", { name: "Pages of airports" })
          const previous = pages.getByRole("button", { name: "Previous" })
          const next = pages.getByRole("button", { name: "Next" })
          expect(await previous.getAttribute("aria-disabled")).toBe("true")
          for (let n = 2; n <= 6; n++) {
            await next.click()
            await told(airports(page), `58 airports, page ${n} of 6.`)
          }
          expect(await table.getByRole("rowheader").count()).toBe(8)
          expect(await next.getAttribute("aria-disabled")).toBe("true")
          await previous.click()
          await told(airports(page), "58 airports, page 5 of 6.")
          await signed(airports(page), byReplica)

          expect(new URL(page.url()).search).toBe("?search=lake&page=5")
          await page.reload()
          await told(airports(page), "58 airports, page 5 of 6.")
          expect(await searchField(page).inputValue()).toBe("lake")
        })
      )

      it.scoped("a search for airports without a match says so, and an emptied field lists all", () =>
        visiting(async (page) => {
          await search(page, "<b>nowhere</b>")
          await told(airports(page), "0 airports.")
          await airports(page).getByText("No airport has “<b>nowhere</b>” in it.").waitFor()
          expect(await airports(page).getByRole("table").count()).toBe(0)
          await searchField(page).fill("")
          await told(airports(page), "3,376 airports")
        })
      )
    })

    describe("the page during faults", () => {
      const steady = /^(?:[3-9]|\d\d+) answered, 0 failed$/

      it.scoped("the page works without a failure when every connection is killed", () =>
        visiting(async (page) => {
          const panel = playground(page)
          await panel.getByText("Replica running").waitFor()
          await panel.getByRole("button", { name: "Kill connections" }).click()
          await told(panel, /^(?:One connection was|\d+ connections were) ended\.$/)
          await add(page, "After the kill")
          await signed(todos(page), byPrimary)
          await search(page, "austin")
          await told(airports(page), "4 airports.")
          await panel.getByRole("button", { name: "Kill connections" }).click()
          await panel.getByText(steady).waitFor()
          await deleteButton(page, "After the kill").click()
          await told(todos(page), "Deleted “After the kill”.")
        })
      )

      it.scoped("the page is served by the primary when the replica is frozen, and not after the thaw", () =>
        visiting(async (page) => {
          const panel = playground(page)
          await signed(airports(page), byReplica)
          await panel.getByRole("button", { name: "Freeze replica" }).click()
          await told(panel, "The replica is frozen.")
          await panel.getByText(/^Replica frozen; it thaws by itself in \d+ s$/).waitFor()
          await search(page, "lake")
          await told(airports(page), "58 airports, page 1 of 6.")
          await signed(airports(page), readByPrimary)
          await add(page, "While it is frozen")
          // the connections to the server that answers are killed
          await panel.getByRole("button", { name: "Kill connections" }).click()
          await told(panel, /ended\.$/)
          await search(page, "")
          await told(airports(page), "3,376 airports")
          await signed(airports(page), readByPrimary)

          const thaw = panel.getByRole("button", { name: "Thaw replica" })
          await thaw.click()
          await told(panel, "The replica is thawed.")
          await panel.getByText("Replica running").waitFor()
          expect(await hasFocus(panel.getByRole("button", { name: "Freeze replica" }))).toBe(true)
          const latest = panel.getByRole("list", { name: "Latest answers" }).getByRole("listitem").first()
          await latest.filter({ hasText: "app · replica" }).waitFor({ timeout: 20_000 })
          await panel.getByText(steady).waitFor()
          await deleteButton(page, "While it is frozen").click()
          await told(todos(page), "Deleted “While it is frozen”.")
        })
      )

      it.scoped("the page shows a visitor who comes later that the replica is frozen", () =>
        visiting(async (page) => {
          await playground(page).getByRole("button", { name: "Freeze replica" }).click()
          await told(playground(page), "The replica is frozen.")
          await page.reload()
          await playground(page)
            .getByText(/^Replica frozen/)
            .waitFor()
          await playground(page).getByRole("button", { name: "Thaw replica" }).click()
          await told(playground(page), "The replica is thawed.")
        })
      )
    })

    describe("a failover on the page", () => {
      const button = (page: Page, name: string) => servers(page).getByRole("button", { name, exact: true })

      it.scoped("a visitor kills the primary under load, promotes the replica, and sees the gap and its end", () =>
        Effect.gen(function* () {
          const { page } = yield* visit((yield* Service).url)
          page.setDefaultTimeout(30_000)
          yield* Effect.promise(async () => {
            await serverRow(page, /^server 1 .* primary up/).waitFor()
            await serverRow(page, /^server 2 .* replica up/).waitFor()
            await button(page, "Send 30 requests a second").click()
            await told(servers(page), "30 requests are sent a second, and writes are stored.")
            expect(await button(page, "Send 30 requests a second").getAttribute("aria-pressed")).toBe("true")
            const summary = servers(page).getByText("The same figures as a table")
            await summary.click()
            const figures = servers(page).getByRole("table", { name: "Figures of the load, the latest second first" })
            const second = (failed: string) =>
              figures.getByRole("row", { name: new RegExp(`^\\d\\d:\\d\\d:\\d\\d [1-9]\\d* ${failed}$`) }).first()
            await second("[1-9]\\d* [\\d.,]+ ms [\\d.,]+ ms 0").waitFor()

            await button(page, "Kill the primary").click()
            await told(servers(page), "Server 1, the primary, is killed. Writes wait until a replica is promoted.")
            await told(servers(page), "No write is stored any more.")
            await serverRow(page, /^server 1 .* none stopped: its processes have ended/).waitFor()
            await button(page, "Kill the primary").click()
            await warned(servers(page), "No primary is running: promote a replica, or start the servers again.")
            // writes that have waited for too long fail
            await second("0 .* [1-9]\\d*").waitFor()

            await button(page, "Promote a replica").click()
            await told(servers(page), "Server 2 is the primary now.")
            await told(servers(page), /^Writes are stored again\. None was for [\d.]+ s, while \d+ requests? failed\./)
            await serverRow(page, /^server 2 .* primary up – .* 2 /).waitFor()
            const events = servers(page).getByRole("list", { name: "Latest events of the servers" })
            await events.getByText(/writes go to server 2, found in [\d.]+ s, on timeline 2$/).waitFor()
            // the errors end
            await second("[1-9]\\d* [\\d.,]+ ms [\\d.,]+ ms 0").waitFor()
            expect(await page.locator("#requests-chart .gap").count()).toBeGreaterThan(0)
            expect(await page.locator("#failed-chart .failed:not([height='0'])").count()).toBeGreaterThan(0)

            await page.setViewportSize({ width: 360, height: 740 })
            expect(await page.evaluate("document.documentElement.scrollWidth")).toBe(360)
            // each cell has the name of its column on a narrow screen
            await serverRow(page, /^server 2 .* Role primary State up Lag –/).waitFor()
            await page.setViewportSize({ width: 1280, height: 720 })

            await button(page, "Start it again").click()
            await told(servers(page), "Server 1 runs again.")
            await serverRow(page, /^server 1 .* replica up/).waitFor()
            await button(page, "Send 30 requests a second").click()
            await told(servers(page), "The load is off.")
            await button(page, "Promote a replica").click()
            await told(servers(page), "Server 1 is the primary now.")
            await serverRow(page, /^server 1 .* primary up/).waitFor()
          })
        })
      )

      it.scoped("a button that waits says so and is not sent twice, and works from the keyboard", () =>
        visiting(async (page) => {
          let asked = 0
          let release = () => {}
          const held = new Promise<void>((resolve) => {
            release = resolve
          })
          await page.route("**/cluster/kill", async (route) => {
            asked++
            await held
            await route.fulfill({ json: { servers: ["server 1"] } })
          })
          const kill = button(page, "Kill the primary")
          await kill.focus()
          await page.keyboard.press("Enter")
          const waiting = button(page, "Killing…")
          await waiting.waitFor()
          expect(await waiting.getAttribute("aria-disabled")).toBe("true")
          expect(await hasFocus(waiting)).toBe(true)
          await page.keyboard.press("Enter")
          release()
          await told(servers(page), /^Server 1, the primary, is killed/)
          await kill.waitFor()
          expect(await hasFocus(kill)).toBe(true)
          expect(asked).toBe(1)
        })
      )
    })

    describe("accessibility", () => {
      it.scoped("every function is reachable from the keyboard, and the focus is visible", () =>
        visiting(async (page) => {
          const { keyboard } = page
          /** Presses Tab until an element has the focus. */
          const reach = async (goal: Locator) => {
            for (let presses = 0; presses < 40; presses++) {
              await keyboard.press("Tab")
              const outline = await page.evaluate(
                "getComputedStyle(document.activeElement ?? document.body).outlineStyle"
              )
              expect(outline).not.toBe("none")
              if (await hasFocus(goal)) return
            }
            throw new Error(`the Tab key does not lead to ${goal}`)
          }
          await reach(page.getByRole("link", { name: "Skip to the todos" }))
          await keyboard.press("Enter")
          await reach(title(page))
          for (const text of ["By hand", "By foot"]) {
            await keyboard.type(text)
            await keyboard.press("Enter")
            await told(todos(page), `Added “${text}”.`)
            expect(await hasFocus(title(page))).toBe(true)
          }
          await reach(box(page, "By hand"))
          await keyboard.press("Space")
          await told(todos(page), "Done: “By hand”.")
          await keyboard.press("Space")
          await told(todos(page), "Open again: “By hand”.")
          await reach(deleteButton(page, "By hand"))
          await keyboard.press("Enter")
          await told(todos(page), "Deleted “By hand”.")
          // the focus is on the next element to use
          expect(await hasFocus(deleteButton(page, "By foot"))).toBe(true)
          await keyboard.press("Enter")
          await told(todos(page), "Deleted “By foot”.")
          expect(await hasFocus(title(page))).toBe(true)

          await reach(searchField(page))
          await keyboard.type("lake")
          await keyboard.press("Enter")
          await told(airports(page), "58 airports, page 1 of 6.")
          const next = page.getByRole("button", { name: "Next" })
          await reach(next)
          await keyboard.press("Enter")
          await told(airports(page), "58 airports, page 2 of 6.")
          expect(await hasFocus(next)).toBe(true)

          await reach(playground(page).getByRole("button", { name: "Kill connections" }))
          await keyboard.press("Enter")
          await told(playground(page), /ended\.$/)
          const watch = playground(page).getByRole("button", { name: "Search once a second" })
          await reach(watch)
          expect(await watch.getAttribute("aria-pressed")).toBe("true")
          await keyboard.press("Space")
          expect(await watch.getAttribute("aria-pressed")).toBe("false")
        })
      )

      it.scoped("every part of the page has its role and its name", () =>
        visiting(async (page) => {
          await told(airports(page), "3,376 airports")
          expect(await page.getByRole("heading", { level: 1 }).count()).toBe(1)
          for (const name of ["Todos", "Audit trail", "Airports", "Watch it go on", "Servers"]) {
            await region(page, name).getByRole("heading", { level: 2, name }).waitFor()
          }
          await page.getByRole("main").waitFor()
          await page.getByRole("search").waitFor()
          await page.getByRole("navigation", { name: "Documentation" }).waitFor()
          const parts = page.locator("button, input, table, nav, section").and(page.locator(":visible"))
          const snapshots = await Promise.all((await parts.all()).map((part) => part.ariaSnapshot()))
          expect(snapshots.length).toBeGreaterThan(10)
          for (const snapshot of snapshots) expect(snapshot.split("\n")[0]).toMatch(/^- \w+ ".+"/)
          expect(await page.locator("html").getAttribute("lang")).toBe("en")
        })
      )

      it.scoped("the page fits a screen of 360 pixels", () =>
        visiting(
          async (page) => {
            await told(airports(page), "3,376 airports")
            await title(page).fill("Donaudampfschifffahrtsgesellschaft".repeat(4))
            await addButton(page).click()
            await told(todos(page), /^Added “Donau/)
            await search(page, "Chicago/Greenwood")
            await told(airports(page), "1 airport.")
            await playground(page).getByRole("button", { name: "Kill connections" }).click()
            await playground(page)
              .getByText(/^[1-9] answered/)
              .waitFor()
            expect(await page.evaluate("document.documentElement.scrollWidth")).toBe(360)
            await page.getByRole("button", { name: /^Delete Donau/ }).click()
            await told(todos(page), /^Deleted/)
          },
          { viewport: { width: 360, height: 740 } }
        )
      )

      it.scoped("the page is dark and without motion for users who prefer that", () =>
        visiting(
          async (page) => {
            const style = (name: string, of: string) =>
              page.evaluate<string>(`getComputedStyle(document.querySelector("${of}")).${name}`)
            const dark = await style("backgroundColor", "body")
            expect(await style("transitionDuration", "button")).toBe("0s")
            await page.emulateMedia({ colorScheme: "light", reducedMotion: "no-preference" })
            expect(await style("backgroundColor", "body")).not.toBe(dark)
          },
          { colorScheme: "dark", reducedMotion: "reduce" }
        )
      )
    })
  })

  layer(Browser.layer, { excludeTestServices: true })("the page on foreign servers", (it) => {
    it.scoped(
      "the page offers nothing that disturbs foreign servers, reports a lost service beside what failed, and keeps what was typed",
      () =>
        Effect.gen(function* () {
          const { app, env } = yield* Program.databases
          const first = yield* Program.start([], env)
          const url = yield* first.url
          const { complaints, page } = yield* visit(url)
          yield* Effect.promise(async () => {
            await told(airports(page), "3,376 airports")
            expect(await playground(page).count()).toBe(0)
            for (const act of ["kill", "freeze", "thaw"]) {
              expect((await fetch(`${url}/servers/${act}`, { method: "POST" })).status).toBe(404)
            }
            await servers(page)
              .getByText(/^These servers were not started by the service/)
              .waitFor()
            await serverRow(page, new URL(env.DATABASE_URL).host).getByText("primary").waitFor()
            expect(await servers(page).getByRole("button").count()).toBe(0)
            await add(page, "Before")
          })
          expect(complaints).toEqual([])

          yield* first.signal("SIGTERM")
          expect(yield* first.ended).toMatchObject({ code: 0 })
          const gone = "The service cannot be reached: it may have been stopped."
          yield* Effect.promise(async () => {
            await title(page).fill("Not lost")
            await addButton(page).click()
            await warned(todos(page), gone)
            await box(page, "Before").click()
            await warned(todos(page).getByRole("listitem"), gone)
            expect(await box(page, "Before").isChecked()).toBe(false)
            await search(page, "lake")
            await warned(airports(page), gone)
            expect(await title(page).inputValue()).toBe("Not lost")
            expect(await searchField(page).inputValue()).toBe("lake")
          })

          const second = yield* Program.start([], { ...env, PORT: new URL(url).port })
          yield* second.url
          yield* second.line(/Ctrl-C stops/)
          yield* Effect.promise(async () => {
            await todos(page).locator("form").getByRole("button", { name: "Try again" }).click()
            await told(todos(page), "Added “Not lost”.")
            await todos(page).getByRole("listitem").getByRole("button", { name: "Try again" }).click()
            await told(todos(page), "Done: “Before”.")
            await airports(page).getByRole("button", { name: "Try again" }).click()
            await told(airports(page), "58 airports, page 1 of 6.")
            expect(await page.getByRole("alert").filter({ hasText: gone }).count()).toBe(0)
          })
          expect(yield* query(app, "SELECT title, done FROM todo ORDER BY created")).toEqual([
            { title: "Before", done: true },
            { title: "Not lost", done: false }
          ])
        })
    )

    it.scoped("the page shows in a sentence that a database is out of reach, and what to do", () =>
      Effect.gen(function* () {
        const { app, env } = yield* Program.databases
        const proxy = yield* makeProxy(app)
        const service = yield* Program.start([], { ...env, DATABASE_URL: Redacted.value(proxy.url) })
        const { page } = yield* visit(yield* service.url)
        yield* Effect.promise(() => page.waitForLoadState("networkidle"))
        yield* proxy.refuse
        yield* proxy.cut
        yield* Effect.promise(async () => {
          await title(page).fill("Try me twice")
          await addButton(page).click()
          await warned(todos(page), /^The service cannot do this now \(\w+\): nothing is stored, send it again\./)
          expect(await title(page).inputValue()).toBe("Try me twice")
        })
        yield* proxy.accept
        yield* Effect.promise(async () => {
          await todos(page).getByRole("button", { name: "Try again" }).click()
          await told(todos(page), "Added “Try me twice”.")
        })
        expect(yield* query(app, "SELECT title FROM todo")).toEqual([{ title: "Try me twice" }])
      })
    )
  })
})
