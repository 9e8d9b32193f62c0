import * as fs from "node:fs"
import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import type * as Scope from "effect/Scope"
import { type BrowserContextOptions, type Browser as Chromium, chromium, type Page } from "playwright-core"

const program = process.env.EFFECT_DB_TEST_CHROMIUM ?? "/usr/bin/chromium"

/** True if there is a Chromium. The suites that need it are skipped without it. */
export const hasChromium = fs.existsSync(program)

/** The name of a suite that needs Chromium, with the reason if it is skipped. */
export const inChromium = hasChromium
  ? "in Chromium"
  : `in Chromium (there is none at ${program}: npm run test:cluster)`

const args = [
  "--headless",
  "--no-sandbox",
  "--disable-gpu",
  "--disable-quic",
  "--no-first-run",
  "--disable-background-networking",
  "--disable-component-update",
  "--disable-sync"
]

/** One browser for all tests of a file. */
export class Browser extends Context.Tag("test/Browser")<Browser, Chromium>() {
  static readonly layer = Layer.scoped(
    Browser,
    Effect.acquireRelease(
      Effect.promise(() =>
        chromium.launch({
          executablePath: program,
          args,
          handleSIGINT: false,
          handleSIGTERM: false,
          handleSIGHUP: false
        })
      ),
      (browser) => Effect.promise(() => browser.close())
    )
  )
}

export interface Visit {
  readonly page: Page
  /** The messages of the browser's console, and uncaught errors. */
  readonly complaints: ReadonlyArray<string>
}

/** Opens a page as a new visitor, until the scope ends. */
export const visit = (
  url: string,
  options: BrowserContextOptions = {}
): Effect.Effect<Visit, never, Browser | Scope.Scope> =>
  Effect.gen(function* () {
    const browser = yield* Browser
    const context = yield* Effect.acquireRelease(
      Effect.promise(() => browser.newContext(options)),
      (context) => Effect.promise(() => context.close())
    )
    const complaints: Array<string> = []
    const page = yield* Effect.promise(() => context.newPage())
    page.on("pageerror", (error) => complaints.push(String(error)))
    page.on("console", (message) => {
      if (message.type() === "error" || message.type() === "warning") complaints.push(message.text())
    })
    yield* Effect.promise(() => page.goto(url))
    return { page, complaints }
  })
