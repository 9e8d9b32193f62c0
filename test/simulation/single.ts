import "./loop/globals.js"

import { real } from "./loop/globals.js"
import { Episode } from "./work/episode.js"

const [seed = "1", minutes = "10", count = "1", t] = process.argv.slice(2)
for (let i = 0; i < Number(count); i++) {
  const start = real.now()
  const episode = new Episode({ seed: `${Number(seed) + i}`, millis: Number(minutes) * 60_000 })
  if (t !== undefined) episode.trace.onLine = (line) => console.log(line)
  const result = await episode.run()
  console.log(result.seed, result.hash, "steps", result.steps, "calls", result.calls, "faults", JSON.stringify(result.faults), "real", Math.round(real.now() - start), "monitor", )
  if (result.violation) { console.log(result.trace.slice(-50).join("\n"), JSON.stringify(result.outcomes)); process.exit(1) }
}
