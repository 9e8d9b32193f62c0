import { assert, describe, it } from "vitest"
import { isUnordered } from "../../src/internal/sql/rowOrder.js"

const unordered = [
  "SELECT * FROM todo",
  "select title from only public.todo where id > $1 limit 3",
  "SELECT * FROM todo;",
  "-- ORDER BY id\nSELECT 'ORDER BY 1' FROM todo /* ORDER BY 2 */",
  'SELECT "ORDER BY", $$ORDER BY$$ FROM "todo"',
  "SELECT * FROM (SELECT * FROM todo ORDER BY id) s",
  "SELECT row_number() OVER (ORDER BY id) FROM todo",
  "SELECT string_agg(title, ',' ORDER BY title) FROM todo GROUP BY owner",
  "WITH t AS (SELECT * FROM todo ORDER BY id) SELECT * FROM t",
  "WITH update AS (SELECT 1) SELECT * FROM update",
  "WITH gone AS (DELETE FROM todo RETURNING *) SELECT * FROM gone",
  "SELECT a IS DISTINCT FROM b FROM todo",
  "SELECT * FROM generate_series(1, 3) n, todo",
  "SELECT * FROM generate_series(1, 3) n JOIN todo ON todo.id = n",
  "SELECT * FROM todo FOR UPDATE",
  "SELECT id FROM a UNION ALL SELECT id FROM b",
  "TABLE todo"
]

const others = [
  "SELECT * FROM todo ORDER BY id",
  "SELECT * FROM todo order\n/* by */ by id LIMIT 3",
  "WITH t AS (SELECT 1) SELECT * FROM t ORDER BY 1",
  "SELECT id FROM a UNION ALL SELECT id FROM b ORDER BY id",
  "(SELECT * FROM todo ORDER BY id) LIMIT 1",
  "TABLE todo ORDER BY id",
  "SELECT 1",
  "SELECT unnest(ARRAY[1, 2])",
  "SELECT a IS DISTINCT FROM b",
  "SELECT extract(year FROM now())",
  "SELECT * FROM generate_series(1, 3)",
  "SELECT * FROM pg_catalog.generate_series(1, 3) n, LATERAL generate_series(1, n)",
  "SELECT * FROM ROWS FROM (generate_series(1, 3), generate_series(1, 4))",
  "VALUES (2), (1)",
  "INSERT INTO todo SELECT * FROM other RETURNING id",
  "WITH t AS (SELECT 1) INSERT INTO todo SELECT * FROM t RETURNING id",
  "UPDATE todo SET done = true RETURNING id",
  "EXPLAIN SELECT * FROM todo",
  "FETCH 3 FROM cursor",
  "SHOW work_mem",
  "SELECT * FROM a; SELECT * FROM b",
  "",
  "WITH"
]

describe("isUnordered", () => {
  for (const text of unordered) {
    it(`the rows have no defined order: ${text}`, () => assert.strictEqual(isUnordered(text), true))
  }
  for (const text of others) {
    it(`the rows have an order, or it is not certain that they have none: ${text}`, () =>
      assert.strictEqual(isUnordered(text), false))
  }
})
