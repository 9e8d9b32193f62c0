/**
 * The processes that run the episodes.
 */
import { type ChildProcess, fork } from "node:child_process"
import * as path from "node:path"
import type { Job, Message } from "../episodeProcess.js"
import type { EpisodeResult } from "../work/episode.js"

/** The real time after which an episode is taken to hang, in ms. */
const hangTime = 180_000

/** Process that runs episodes, one at a time. A new one is started after a violation. */
export class Worker {
  private child: ChildProcess | undefined

  constructor(
    /** The folder of the compiled simulation. */
    private readonly folder: string,
    private readonly onLine: (line: string) => void = () => {}
  ) {}

  /** Runs an episode. */
  run(job: Job): Promise<EpisodeResult> {
    const child = this.child ?? this.start()
    this.child = child
    return new Promise((resolve) => {
      const end = (result: EpisodeResult) => {
        clearTimeout(timer)
        child.off("message", onMessage)
        child.off("exit", onExit)
        // the state of the library is unknown after a violation
        if (result.violation !== undefined) this.stop()
        resolve(result)
      }
      const fail = (invariant: string, message: string, trace: ReadonlyArray<string> = []) =>
        end(failed(job, invariant, message, trace))
      const onMessage = (message: Message) => {
        if (message._tag === "line") this.onLine(message.line)
        else if (message._tag === "result") end(message.result)
        else fail("no crash", message.message, message.trace)
      }
      const onExit = (code: number | null) => fail("no crash", `the process has ended with ${code}`)
      const timer = setTimeout(() => fail("progress", `the episode takes more than ${hangTime / 1000} s`), hangTime)
      child.on("message", onMessage)
      child.once("exit", onExit)
      child.send(job)
    })
  }

  stop(): void {
    this.child?.kill("SIGKILL")
    this.child = undefined
  }

  private start(): ChildProcess {
    return fork(path.join(this.folder, "episodeProcess.js"), {
      execArgv: ["--max-semi-space-size=32"],
      stdio: ["ignore", "inherit", "inherit", "ipc"]
    })
  }
}

const failed = (job: Job, invariant: string, message: string, trace: ReadonlyArray<string>): EpisodeResult => ({
  seed: job.seed,
  hash: "",
  steps: 0,
  millis: 0,
  calls: 0,
  outcomes: {},
  faults: {},
  planned: 0,
  violation: { invariant, message, step: 0, at: job.until ?? job.millis },
  trace
})
