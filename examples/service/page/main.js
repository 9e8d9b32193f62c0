import * as Records from "./records.js"
import * as Servers from "./servers.js"
import * as Todos from "./todos.js"

Todos.start()
Records.start()
Servers.start()
