import { callers, pooling } from "../suites/pooling.js"

pooling("pooled", "lifo", callers)
