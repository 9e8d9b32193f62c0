import { spawn } from "node:child_process"
import { createReadStream, statSync } from "node:fs"
import type { Readable } from "node:stream"

/**
 * Opens a file or a pipe for reading. A pipe is read by `cat`: a read by Node blocks a thread until the pipe has more, and the process could
 * not end in the meantime.
 */
export const openToRead = (file: string): Readable => {
  if (statSync(file, { throwIfNoEntry: false })?.isFIFO() !== true) return createReadStream(file)
  const cat = spawn("cat", ["--", file], { stdio: ["ignore", "pipe", "inherit"] })
  const kill = () => cat.kill()
  process.once("exit", kill)
  cat.stdout.once("close", kill)
  return cat.stdout
}
