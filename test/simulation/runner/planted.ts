/**
 * Plants faults in copies of the library, and proves that the simulation finds each within a minute.
 */
import * as fs from "node:fs"
import * as path from "node:path"
import { InvalidOption, type RunOptions } from "./options.js"
import { type PlantedFault, plantedFaults } from "./plantedFaults.js"
import { denseEpisodeOf, Simulation } from "./simulation.js"

/** The time to find a fault, in ms. */
const limit = 60_000

/** Returns the folder of the project, with the compiled library. */
const projectOf = (folder: string): string => {
  for (let above = folder; above !== path.dirname(above); above = path.dirname(above)) {
    if (fs.existsSync(path.join(above, "package.json"))) return above
  }
  throw new Error(`no package.json above ${folder}`)
}

/** Copies library and simulation, and plants a fault; returns the folder of the copied simulation. */
const plant = (folder: string, { edits, name }: PlantedFault): string => {
  const project = projectOf(folder)
  const copy = path.join(folder, "..", "planted", name)
  fs.rmSync(copy, { recursive: true, force: true })
  fs.mkdirSync(copy, { recursive: true })
  fs.copyFileSync(path.join(project, "package.json"), path.join(copy, "package.json"))
  fs.cpSync(path.join(project, "dist"), path.join(copy, "dist"), { recursive: true })
  const above = path.dirname(folder.replace(/[\\/]$/, ""))
  for (const part of ["simulation", "support"]) {
    fs.cpSync(path.join(above, part), path.join(copy, "test", part), { recursive: true })
  }
  for (const { file, find, replace } of edits) {
    const target = path.join(copy, "dist", "internal", file)
    const text = fs.readFileSync(target, "utf8")
    if (text.split(find).length !== 2)
      throw new Error(`the fault ${name} does not fit ${file}: its text is there ${text.split(find).length - 1} times`)
    fs.writeFileSync(
      target,
      text.replace(find, () => replace)
    )
  }
  return path.join(copy, "test", "simulation")
}

/** Plants the faults, one after the other, and returns true if each was found. */
export const findPlanted = async (folder: string, { only, seed, workers }: RunOptions): Promise<boolean> => {
  const faults = plantedFaults.filter(({ name }) => only === undefined || name === only)
  if (faults.length === 0) {
    throw new InvalidOption(`there is no fault ${only}: they are ${plantedFaults.map(({ name }) => name).join(", ")}`)
  }
  console.log(`seed ${seed}, ${workers} processes`)
  let found = 0
  for (const fault of faults) {
    const copy = plant(folder, fault)
    const startedAt = performance.now()
    const simulation = new Simulation({
      folder: copy,
      seed,
      episodeOf: denseEpisodeOf,
      episodes: 100_000,
      limit,
      workers,
      twice: false
    })
    const stop = () => {
      simulation.stop()
      process.exit(130)
    }
    process.once("SIGINT", stop)
    const { failure, totals } = await simulation.run()
    process.off("SIGINT", stop)
    fs.rmSync(path.join(copy, "..", ".."), { recursive: true, force: true })
    const seconds = ((performance.now() - startedAt) / 1000).toFixed(1)
    const violation = failure?.result.violation
    if (violation !== undefined) found++
    const end =
      violation === undefined
        ? `NOT FOUND after ${seconds} s, ${totals.episodes} episodes`
        : `found after ${seconds} s, ${totals.episodes} episodes, by "${violation.invariant}": ${violation.message.split("\n")[0]}`
    console.log(`${fault.name} (${fault.meaning}): ${end}`)
  }
  console.log(`${found} of ${faults.length} planted faults were found`)
  return found === faults.length
}
