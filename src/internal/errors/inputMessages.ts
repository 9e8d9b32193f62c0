/**
 * The messages of errors about the program's input: settings, notifications and schemas.
 */

interface Setting {
  readonly database: string
  readonly setting: string
  readonly given: string
  readonly expected: string
}

export const configInvalid = ({ database, expected, given, setting }: Setting): string =>
  `${database === "" ? "" : `database "${database}": `}setting "${setting}" is ${given}; expected ${expected}`

interface InvalidText {
  readonly database: string
  readonly given: string
  readonly expected: string
}

export const notificationInvalid = (self: InvalidText & { readonly part: "channel" | "payload" }): string =>
  `database "${self.database}": the ${self.part === "channel" ? "channel name" : "payload"} is ${self.given}; ` +
  `expected ${self.expected}`

export const schemaInvalid = ({ database, expected, given }: InvalidText): string =>
  `database "${database}": the schema of withSchema or withTenant is ${given}; expected ${expected}`
