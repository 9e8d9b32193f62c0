/**
 * The options of a request's unit of work, for requests of any library.
 */

import type { ConfigInvalid } from "../../DatabaseError.js"
import type * as UnitOfWork from "../../UnitOfWork.js"
import {
  aBoolean,
  aFunction,
  anObject,
  anyOf,
  aWord,
  invalidOption,
  type OptionRule,
  type OptionRules
} from "../config/callOptionRules.js"
import { invalidOfSettings, sharedOptions } from "../unitOfWork/optionRules.js"
import type { LabelSettings } from "./requestLabel.js"

/** Settings of a unit of work, or `"none"` for a request without one. */
type RequestSettings = UnitOfWork.UnitSettings | "none"

/** Options for requests of any library. `outcome` gets the response or its status as `Answer`. */
export interface RequestOptions<Request, Answer>
  extends LabelSettings,
    Pick<UnitOfWork.Options<never, never>, "databases" | "order" | "checkFirst" | "atomic"> {
  readonly outcome?: ((answer: Answer) => UnitOfWork.Outcome) | undefined
  readonly transaction?: ((request: Request) => RequestSettings) | UnitOfWork.UnitSettings | undefined
}

/** Returns the settings for a request. */
export const settingsFor = <Request, Settings>(
  { transaction }: { readonly transaction?: ((request: Request) => Settings) | UnitOfWork.UnitSettings | undefined },
  request: Request
): Settings | UnitOfWork.UnitSettings | undefined =>
  typeof transaction === "function" ? transaction(request) : transaction

/** The rules for `RequestOptions`. */
export const requestOptions: OptionRules<RequestOptions<never, never>> = {
  ...sharedOptions,
  outcome: aFunction,
  transaction: anyOf(anObject, aFunction),
  applicationName: aBoolean,
  sqlComment: anyOf(aWord("route", "trace"), aFunction)
}

/**
 * Returns the refusal of options, if one is invalid. If `transaction` is a function, its result is
 * checked for each request.
 */
export const invalidRequestOption = <O extends RequestOptions<never, never>>(
  options: O,
  rules: OptionRules<O> & Readonly<Record<string, OptionRule>>
): ConfigInvalid | undefined => {
  const { databases, transaction } = options
  const ofAll = typeof transaction === "object" ? transaction : undefined
  return invalidOption("", options, rules) ?? invalidOfSettings({ databases, transaction: ofAll })
}

/** Returns the default outcome: a status below 400 commits. */
export const outcomeByStatus = (status: number): UnitOfWork.Outcome => (status < 400 ? "commit" : "rollback")

/** Returns the default outcome of a response. */
export const outcomeOfResponse = ({ status }: { readonly status: number }): UnitOfWork.Outcome =>
  outcomeByStatus(status)
