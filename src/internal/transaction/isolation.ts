/**
 * The order of isolation levels.
 */
import type { Isolation } from "../../Transaction.js"

const strength: Readonly<Record<Isolation, number>> = { "read committed": 0, "repeatable read": 1, serializable: 2 }

/** Checks if a transaction requires a higher isolation than the one around it has. */
export const isHigher = (required: Isolation | undefined, around: Isolation): required is Isolation =>
  required !== undefined && strength[required] > strength[around]
