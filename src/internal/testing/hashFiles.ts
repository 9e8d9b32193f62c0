/**
 * The hash of files, such as the migrations of a database.
 */
import { createHash } from "node:crypto"
import * as fs from "node:fs/promises"
import * as path from "node:path"
import * as Effect from "effect/Effect"
import { ConfigInvalid } from "../../DatabaseError.js"
import { thrownMessage } from "../protocol/thrownValue.js"

/** Returns the files at a path: the file itself, or those of the folder and of the folders in it, in order. */
const filesAt = async (place: string): Promise<ReadonlyArray<string>> => {
  if (!(await fs.stat(place)).isDirectory()) return [place]
  const names = await fs.readdir(place)
  const found = await Promise.all(names.sort().map((name) => filesAt(path.join(place, name))))
  return found.flat()
}

/** Returns the hash of the names and the contents of files and folders. */
export const hashFiles = (places: ReadonlyArray<string>): Effect.Effect<string, ConfigInvalid> =>
  Effect.forEach(places, (place) =>
    Effect.tryPromise({
      try: async () => {
        const hash = createHash("sha256")
        for (const file of await filesAt(place)) {
          const content = await fs.readFile(file)
          hash.update(`${path.relative(place, file)}\0${content.length}\0`).update(content)
        }
        return hash.digest("hex")
      },
      catch: (cause) =>
        new ConfigInvalid({
          database: "",
          setting: "hash",
          given: `made of ${JSON.stringify(place)}, which cannot be read (${thrownMessage(cause)})`,
          expected: "the paths of files and folders that exist"
        })
    })
  ).pipe(Effect.map((hashes) => createHash("sha256").update(hashes.join(" ")).digest("hex")))
