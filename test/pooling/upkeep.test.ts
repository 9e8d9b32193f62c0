import { pooling, upkeep } from "../suites/pooling.js"

for (const strategy of ["pooled", "single"] as const) pooling(strategy, "lifo", upkeep, { onSessions: true })
