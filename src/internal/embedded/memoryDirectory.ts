/**
 * The folder for a cluster that only tests use.
 */
import * as fs from "node:fs"
import * as os from "node:os"

/** The folder of files in memory on Linux. */
const memory = "/dev/shm"

/** The free memory that a cluster with replicas needs, in bytes. */
const enough = 2 ** 30

const hasRoom = (folder: string): boolean => {
  try {
    fs.accessSync(folder, fs.constants.W_OK | fs.constants.X_OK)
    const { bavail, bsize } = fs.statfsSync(folder)
    return bavail * bsize >= enough
  } catch {
    // the system has no such folder
    return false
  }
}

/** Returns the folder of files in memory if it has room, else the one for temporary files. */
export const memoryDirectory = (): string => (hasRoom(memory) ? memory : os.tmpdir())
