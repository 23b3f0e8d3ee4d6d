/** What the server and we say to each other beyond the standard: `docs/editors-protocol.md`. */
import {
  type Command,
  ExecuteCommandRequest,
  NotificationType,
  type Position,
  type Range,
  RequestType,
  type TextEdit,
} from "vscode-languageclient/node";

export interface ServerStatus {
  readonly state?: "loading" | "ready" | "busy" | "warning" | "error" | "inactive";
  /** `inactive`: does not complete, and that is intended (switched off, excluded file). */
  readonly kind: "normal" | "warning" | "error" | "inactive";
  /** A completion, or the model's loading, is under way. */
  readonly busy: boolean;
  /** One sentence for the user; empty when there is nothing to say. */
  readonly message: string;
  /** Why the last request got no suggestion. */
  readonly reason?: string | null;
  /** What the last answer took the engine. */
  readonly ms?: number | null;
  /** And how many denoiser passes. */
  readonly forwards?: number | null;
}

/** Sent by the server whenever its status changes. */
export const StatusNotification = new NotificationType<ServerStatus>("mezzotint/status");

/** A fill after one step, for a command that asked for `frames`: its canvas, or a verified draft. */
export interface Frame {
  readonly token: string;
  readonly step: number;
  /** Text of each slot of the canvas or the draft; null: still masked; "": the span has ended. */
  readonly slots: readonly (string | null)[];
  /** Slots, from the left, that the model agreed with; null where nothing verifies. */
  readonly accepted: number | null;
  /** What is decided, from the left edge on. */
  readonly text: string;
}

export const FrameNotification = new NotificationType<Frame>("mezzotint/frame");

export interface Fill {
  readonly applied: boolean;
  /** Of the document that the candidates are for. */
  readonly version: number | null;
  readonly reason: string | null;
  readonly candidates: readonly FillCandidate[];
}

export interface FillCandidate {
  /** Null where the engine does not tell. */
  readonly confidence: number | null;
  readonly newSyntaxErrors: number | null;
  readonly edits: readonly TextEdit[];
}

export interface FillArguments {
  readonly uri: string;
  readonly version: number;
  readonly position?: Position;
  readonly range?: Range;
  readonly apply: false;
  readonly frames?: string;
}

export type FillCommand = "mezzotint.fill.here" | "mezzotint.fill.selection" | "mezzotint.fill.holes";

export interface Statistics {
  readonly shown: number;
  readonly accepted: number;
  readonly partiallyAccepted: number;
  readonly rejected: number;
  readonly acceptanceRate: number | null;
  readonly charactersAccepted: number;
  readonly since: string | null;
}

/** `workspace/executeCommand`, whose result the standard leaves open. */
export function executeCommand<Result>(): RequestType<
  { command: string; arguments?: unknown[]; workDoneToken?: string },
  Result,
  void
> {
  return new RequestType(ExecuteCommandRequest.method);
}

/** A suggestion as the server sent it; its id is the command's argument. */
export interface ShownItem {
  readonly insertText: string;
  readonly range: Range;
  readonly command?: Command;
}

export const DidShow = new NotificationType<{ item: ShownItem }>(
  "textDocument/didShowCompletion",
);

export const DidReject = new NotificationType<{ item: ShownItem }>(
  "textDocument/didRejectCompletion",
);

export const DidPartiallyAccept = new NotificationType<{
  item: ShownItem;
  /** UTF-16 units from the start of `insertText`. */
  acceptedLength: number;
}>("textDocument/didPartiallyAcceptCompletion");
