import { idle, pooling } from "../suites/pooling.js"

for (const order of ["lifo", "fifo"] as const) pooling("pooled", order, idle)
