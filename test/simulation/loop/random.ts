/**
 * The random numbers of a simulation. All come from one seed; independent parts fork a generator of
 * their own, so that a part that is left out does not change the numbers of the others.
 */
import { randoms } from "../../support/random.js"

/** Returns a hash of a text, as 32 bits (FNV-1a). */
const hashOf = (text: string, start = 0x811c9dc5): number => {
  let hash = start
  for (let i = 0; i < text.length; i++) hash = Math.imul(hash ^ text.charCodeAt(i), 0x01000193)
  return hash >>> 0
}

/** Generator of random numbers. */
export class Random {
  /** Returns a number from 0 up to 1. */
  readonly next: () => number

  constructor(private readonly seed: string) {
    this.next = randoms(hashOf(seed))
  }

  /** Creates the generator of a part, which depends on the seed and the name alone. */
  fork(name: string): Random {
    return new Random(`${this.seed}/${name}`)
  }

  /** Returns a number in a range. */
  between(least: number, most: number): number {
    return least + this.next() * (most - least)
  }

  /** Returns a whole number in a range, both ends included. */
  whole(least: number, most: number): number {
    return least + Math.floor(this.next() * (most - least + 1))
  }

  /** Returns true with a probability. */
  chance(probability: number): boolean {
    return this.next() < probability
  }

  /** Returns one of several values. */
  pick<A>(all: readonly [A, ...ReadonlyArray<A>]): A {
    return all[Math.floor(this.next() * all.length)] ?? all[0]
  }

  /** Returns one of several values by their weights. */
  weighted<A>(all: readonly [readonly [A, number], ...ReadonlyArray<readonly [A, number]>]): A {
    let left = this.next() * all.reduce((sum, [, weight]) => sum + weight, 0)
    for (const [value, weight] of all) {
      left -= weight
      if (left < 0) return value
    }
    return all[0][0]
  }

  /** Returns a delay with the given mean, as of independent events. */
  exponential(mean: number): number {
    return -Math.log(1 - this.next()) * mean
  }
}
